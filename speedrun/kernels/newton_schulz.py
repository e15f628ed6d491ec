"""Orthogonalise matrices with matmuls only: the Newton-Schulz iteration of Muon."""

# N matrices of one shape, R rows, C columns

import functools

import torch
from torch import Tensor

from speedrun.kernels.symmetric import gram, squared_gram

Coefficients = tuple[tuple[float, float, float], ...]
"""a, b, c of a*x + b*x^3 + c*x^5, applied to every singular value: a triple for each step, of which
the last serves all further ones."""

CLASSIC: Coefficients = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""The best odd polynomial of degree five for each step in turn: Amsel et al. 2025,
arXiv:2505.16932, with the safety margin that parameter-golf PR #1787 gives it."""


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
    updates_NRC: Tensor,
    steps: int = 5,
    *,
    dtype: torch.dtype | None = None,
    coefficients: Coefficients = CLASSIC,
) -> Tensor:
    """Push the singular values of each matrix towards one; `newton_schulz_ref` has the mathematics.

    Shapes
        updates_NRC  (..., R, C)  not changed
        result       (..., R, C)  in `dtype`, by default `matmul_dtype` of the device

    Source
        Muon: Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    x_NRC = updates_NRC.to(dtype or matmul_dtype(updates_NRC.device.type))
    # The Gram matrix of the shorter side is the smaller one.
    is_tall = x_NRC.size(-2) > x_NRC.size(-1)
    x_NRC = x_NRC.mT if is_tall else x_NRC
    x_NRC = x_NRC.reshape(-1, *x_NRC.shape[-2:])
    x_NRC = x_NRC / (x_NRC.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        x_NRC = torch.baddbmm(x_NRC, squared_gram(gram(x_NRC), b, c), x_NRC, beta=a)
    result_NRC: Tensor = x_NRC.mT if is_tall else x_NRC
    return result_NRC.reshape(updates_NRC.shape)


def newton_schulz_ref(
    update_RC: Tensor, steps: int = 5, *, coefficients: Coefficients = CLASSIC
) -> Tensor:
    """One matrix, in its own dtype: X/|X|, then X <- a X + (b A + c A A) X with A = X X^T.

    Computing with the longer side instead gives the same matrix, so nothing is transposed here.
    """
    x_RC: Tensor = update_RC / (update_RC.norm() + 1e-7)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram_RR = x_RC @ x_RC.T
        x_RC = a * x_RC + (b * gram_RR + c * gram_RR @ gram_RR) @ x_RC
    return x_RC
