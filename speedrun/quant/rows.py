"""Rounding of matrices to small integers with one scale per row, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from speedrun.config import QuantConfig
from speedrun.errors import QuantError

EMBEDDINGS = ("tok_emb.weight", "lm_head.weight", "embed.weight")
"""Ends of the names of the tensors that have `quant.embedding_bits`."""
SMALLEST_SCALE = 2.0**-24  # the smallest positive float16
LARGEST_SCALE = 65_504.0


def is_rounded(weight: Tensor, quant: QuantConfig) -> bool:
    """Whether a tensor becomes rows of codes; small ones and vectors do not."""
    large = weight.ndim >= 2 and weight.numel() > quant.small_tensor_limit
    return large and weight.is_floating_point()


def code_bits(name: str, weight: Tensor, quant: QuantConfig) -> int:
    """Bits of the codes that a tensor is rounded to; 0 if it is not."""
    if not is_rounded(weight, quant):
        return 0
    return quant.embedding_bits if name.endswith(EMBEDDINGS) else quant.matrix_bits


def max_code(bits: int) -> int:
    """Largest code of so many bits: 31 for 6. QuantError unless `bits` is 2 to 8."""
    if not 2 <= bits <= 8:
        raise QuantError(f"{bits} bits per code, expected 2 to 8")
    # The most negative code stays unused, so w and -w get mirrored codes and a row gains no bias.
    return (1 << bits - 1) - 1


def quantize_rows(weight: Tensor, clip: Tensor, *, bits: int) -> tuple[Tensor, Tensor]:
    """Round each row of a matrix to codes with one scale per row.

    Shapes
        weight  (rows, cols)  float32
        clip    (rows,)       float32, largest magnitude kept in each row, above zero
        codes   (rows, cols)  int8, -max_code..max_code
        scales  (rows,)       float16, weight units per code step, above zero

    Raises
        QuantError: weight is not a finite matrix; a clip is zero, negative, not finite or too
            large for a float16 scale; the rows differ in number.

    Source
        Symmetric per-row rounding: Nagel et al. 2021, arXiv:2106.08295.
        Ours differs: scales are rounded to float16 first, so codes fit the grid that is stored.
    """
    check_matrix(weight)
    if clip.shape != weight.shape[:1]:
        raise QuantError(f"{tuple(clip.shape)} clips for {len(weight):,} rows, need one each")
    steps = clip / max_code(bits)
    if not bool(((clip > 0) & (steps <= LARGEST_SCALE)).all()):
        raise QuantError(f"clips must be above 0 and finite, at most {LARGEST_SCALE:,.0f} per step")
    scales = steps.clamp_min(SMALLEST_SCALE).half()
    return codes_of(weight, scales.float(), max_code(bits)).to(torch.int8), scales


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Weights that codes stand for, float32.

    Shapes
        codes   (..., rows, cols)  int8
        scales  (..., rows)        float16
    """
    return codes.float() * scales.float().unsqueeze(-1)


def codes_of(weight: Tensor, scales: Tensor, largest: int) -> Tensor:
    """Nearest codes as float32, ties to even; `scales` (rows,) float32."""
    return (weight / scales[:, None]).round_().clamp_(-largest, largest)


def check_matrix(weight: Tensor) -> None:
    """Raise QuantError unless `weight` is a finite float32 matrix on the CPU."""
    if weight.ndim != 2 or weight.dtype != torch.float32:
        raise QuantError(
            f"{weight.dtype} tensor of shape {tuple(weight.shape)}, need a float32 matrix"
        )
    if not bool(weight.isfinite().all()):
        raise QuantError(
            f"{int((~weight.isfinite()).sum()):,} weights are NaN or infinite, expected none"
        )
