"""Rotary positions: which angle each channel pair turns by at each token."""

# T tokens, D head width, R rotated channels of a head

import functools

import torch
from torch import Tensor

from speedrun.config import ModelConfig


def rotary_base(config: ModelConfig, num_tokens: int) -> float:
    """Base of the frequencies, stretched (NTK-aware) for inputs longer than `rope_train_length`."""
    dims = config.rope_dims or config.head_width
    stretch = num_tokens / config.rope_train_length if config.rope_train_length else 1.0
    # With two channels the only frequency is base^0.
    if stretch <= 1 or dims == 2:
        return config.rope_base
    return float(config.rope_base * stretch ** (dims / (dims - 2)))


def rotary_table(num_tokens: int, dims: int, base: float, device: torch.device) -> Tensor:
    """Cosines and sines of angle(t, i) = t * base^(-2i/R), i = 0..R/2-1.

    Shapes
        result  (2, T, 1, R/2)  float32 on `device`; cosines, then sines. Cached: do not change it
    """
    return _rotary_table(num_tokens, dims, base, device)


# A constant of the compiled graph: inductor would otherwise recompute sines inside every layer. It
# is `torch.compiler.assume_constant_result` in effect, which loads the compiler: two seconds at the
# start of every predictor, which has no use for it.
rotary_table._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=8)
def _rotary_table(num_tokens: int, dims: int, base: float, device: torch.device) -> Tensor:
    # Built once for training too, even if an evaluation asks first.
    with torch.inference_mode(False):
        frequencies = 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
        angles = torch.outer(torch.arange(num_tokens, dtype=torch.float32), frequencies)
        return torch.stack((angles.cos(), angles.sin())).unsqueeze(2).to(device)


def rotate(x_BTHD: Tensor, table: Tensor) -> Tensor:
    """Turn the first R channels of each head by minus the angle; channel i pairs with i + R/2.

    Shapes
        x_BTHD  (B, T, H, D)    any floating dtype, kept
        table   (2, T, 1, R/2)  from `rotary_table`, R <= D

    Source
        RoPE: Su et al. 2021, arXiv:2104.09864; halves and sign as in the modded-nanogpt family.
        Partial rotation: parameter-golf PR #315.
    """
    cos, sin = table.to(x_BTHD.dtype).unbind()
    half = table.size(-1)
    x1, x2, rest = x_BTHD.tensor_split((half, 2 * half), dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest), dim=-1)
