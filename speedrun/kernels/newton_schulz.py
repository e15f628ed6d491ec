"""Orthogonalise matrices with matmuls only: the Newton-Schulz iteration of Muon."""

# N matrices of one shape, R rows, C columns

import functools

import torch
from torch import Tensor

from speedrun.kernels.symmetric import gram, squared_gram

CLASSIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of a*x + b*x^3 + c*x^5, applied to every singular value in every step."""


@functools.cache
def matmul_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where a device multiplies it natively, float32 where it would be emulated."""
    if device_type == "cpu":
        flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
        return torch.bfloat16 if native else torch.float32
    if device_type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return torch.float32
    return torch.bfloat16


def newton_schulz(
    updates_NRC: Tensor, steps: int = 5, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Push the singular values of each matrix towards one; `newton_schulz_ref` has the mathematics.

    Shapes
        updates_NRC  (..., R, C)  not changed
        result       (..., R, C)  in `dtype`, by default `matmul_dtype` of the device

    Source
        Muon: Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    a, b, c = CLASSIC
    x_NRC = updates_NRC.to(dtype or matmul_dtype(updates_NRC.device.type))
    # The Gram matrix of the shorter side is the smaller one.
    is_tall = x_NRC.size(-2) > x_NRC.size(-1)
    x_NRC = x_NRC.mT if is_tall else x_NRC
    x_NRC = x_NRC.reshape(-1, *x_NRC.shape[-2:])
    x_NRC = x_NRC / (x_NRC.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        x_NRC = torch.baddbmm(x_NRC, squared_gram(gram(x_NRC), b, c), x_NRC, beta=a)
    result_NRC: Tensor = x_NRC.mT if is_tall else x_NRC
    return result_NRC.reshape(updates_NRC.shape)


def newton_schulz_ref(update_RC: Tensor, steps: int = 5) -> Tensor:
    """One matrix, in its own dtype: X/|X|, then X <- a X + (b A + c A A) X with A = X X^T.

    Computing with the longer side instead gives the same matrix, so nothing is transposed here.
    """
    a, b, c = CLASSIC
    x_RC: Tensor = update_RC / (update_RC.norm() + 1e-7)
    for _ in range(steps):
        gram_RR = x_RC @ x_RC.T
        x_RC = a * x_RC + (b * gram_RR + c * gram_RR @ gram_RR) @ x_RC
    return x_RC
