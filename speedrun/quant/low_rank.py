"""A small correction of what rounding left behind: two thin matrices of four-bit codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speedrun.errors import QuantError
from speedrun.quant.gptq import one_thread
from speedrun.quant.rows import LARGEST_SCALE, SMALLEST_SCALE, check_matrix


class Factors(NamedTuple):
    """left x right with codes of a few bits; one scale per column of left and per row of right."""

    left: Tensor
    """(rows, rank) int8."""
    left_scales: Tensor
    """(rank,) float16."""
    right: Tensor
    """(rank, cols) int8."""
    right_scales: Tensor
    """(rank,) float16."""

    def product(self) -> Tensor:
        """What is added to the weights: (rows, cols) float32."""
        left = self.left.float() * self.left_scales.float()
        return left @ (self.right.float() * self.right_scales.float()[:, None])


def low_rank(residual: Tensor, rank: int, *, gram: Tensor | None = None, bits: int = 4) -> Factors:
    """The product of rank `rank` that is nearest to what rounding left of a matrix.

    Shapes
        residual  (rows, cols)  float32, weights minus rounded weights
        gram      (cols, cols)  mean of x x^T over the layer's inputs; without it all inputs count
                                the same

    Raises
        QuantError: no such rank, or the gram does not fit.

    Source
        LQER: Zhang et al. 2024, arXiv:2402.02446, as in parameter-golf PR #1851 (rank 4, asymmetric
        codes). Ours differs: the inputs' correlations are whitened exactly, both factors have a
        scale per component, and zero is on every grid, so that no zero points are stored.
    """
    check_matrix(residual)
    rows, cols = residual.shape
    if not 1 <= rank <= min(rows, cols):
        raise QuantError(f"rank {rank} for a {rows:,} x {cols:,} matrix, expected 1 to the smaller")
    if not 2 <= bits <= 7:  # codes may all lie on one side of zero, and int8 ends at 127
        raise QuantError(f"{bits} bits for the factors, expected 2 to 7")
    with one_thread():
        root = torch.eye(cols, dtype=torch.float64)
        if gram is not None:
            if gram.shape != (cols, cols):
                raise QuantError(f"gram of shape {tuple(gram.shape)} for {cols:,} columns")
            damped = gram.double() + 0.01 * gram.diagonal().double().mean() * root
            root = torch.linalg.cholesky(damped)
        weighed = residual.double() @ root
        # Eigenvectors of the small side: a whole singular value decomposition takes ten times as
        # long, and only `rank` vectors of it are wanted.
        vectors = torch.linalg.eigh(weighed.T @ weighed).eigenvectors[:, -rank:].flip(1)
        left = weighed @ vectors
        norms = left.norm(dim=0).clamp_min(1e-30)
        right = torch.linalg.solve_triangular(root, vectors.T, left=False, upper=False)
        left, left_scales = _round(left / norms.sqrt(), bits)
        right, right_scales = _round((right * norms.sqrt()[:, None]).T, bits)
    return Factors(left, left_scales, right.T.contiguous(), right_scales)


def _round(columns: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of each column on a grid of 2^bits steps from its smallest to its largest value."""
    low = columns.amin(0).clamp_max(0)
    high = columns.amax(0).clamp_min(0)
    steps = ((high - low) / (2**bits - 1)).clamp(SMALLEST_SCALE, LARGEST_SCALE).half()
    exact = steps.double()
    # Where zero lies on the grid; rounding the ends to it keeps 2^bits codes.
    first = (low / exact).round()
    codes = torch.minimum((columns / exact).round(), first + (2**bits - 1))
    return torch.maximum(codes, first).to(torch.int8), steps
