"""The weights a run starts from: a function of the seed, not of device, threads or neighbours."""

import hashlib

import torch
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.model.embedding import Embedding
from speedrun.model.gpt import GPT
from speedrun.model.linear import Linear


def build_model(config: ModelConfig, *, seed: int) -> GPT:
    """A network with its starting weights, float32 on the CPU."""
    model = GPT(config)
    init_weights(model, config, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig, generator: torch.Generator) -> None:
    """Draw every table and matrix that does not start at zero; constants are set by the layers.

    Tables are normal with their own `std`. Matrices are uniform within 1 / sqrt(inputs), or, with
    `ortho_init` and both sides 64 or more, orthogonal times their `gain`.

    Each tensor has a generator of its own, seeded by one draw from `generator` and its name: adding
    a layer leaves the others' start unchanged.

    Source
        Bounds: torch's own linear layers. Orthogonal: Saxe et al. 2013, arXiv:1312.6120.
    """
    draw = int(torch.randint(2**62, (), generator=generator))
    for name, module in model.named_modules():
        digest = hashlib.sha256(f"{draw}/{name}".encode()).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if isinstance(module, Embedding) and module.std:
            module.weight.copy_(torch.randn(module.weight.shape, generator=own) * module.std)
        elif isinstance(module, Linear) and module.gain:
            rows, cols = module.weight.shape
            if config.ortho_init and min(rows, cols) >= 64:
                module.weight.copy_(_orthogonal(rows, cols, own) * module.gain)
            else:
                uniform = torch.rand(rows, cols, generator=own) * 2 - 1
                module.weight.copy_(uniform * cols**-0.5 * module.gain)


def _orthogonal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    # In float64, so that what LAPACK rounds differently on another machine is rounded away.
    square = (max(rows, cols), min(rows, cols))
    q, r = torch.linalg.qr(torch.randn(square, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    matrix: Tensor = q if rows >= cols else q.T
    return matrix
