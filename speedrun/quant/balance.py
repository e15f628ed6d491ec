"""Steps of codes that make every weight of a network cost the same expected loss.

Behind an entropy coder a finer step costs bits, log2 of the ratio for each weight, and how many
codes there are costs nothing. The best spread of a given number of bits is then the one in which
one more bit saves the same loss wherever it is put: the step of a weight is inversely proportional
to the root of what an error in it costs. That cost is a product of two parts, the row's (how
strongly the loss hangs on this output) and the column's (how strongly the output hangs on this
input, given that GPTQ lets later columns make up for it).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speedrun.quant.gptq import Feedback

_PARTS = 8  # steps are powers of two times 8/8 to 15/8: 4 bits of a float16, not 16
_SMALLEST, _LARGEST = 2.0**-21, 2.0**15  # below, float16 has fewer than eight steps per power
_RARE = 0.02  # of the mean: rows that calibration hardly saw are not thereby worth nothing
_WIDEST = 2.0**6  # between the column scales of a matrix and their mean


class Balance(NamedTuple):
    """What a matrix needs to be rounded at any step; all float64 but `columns`."""

    steps: Tensor
    """(rows,) step of each row where an error of one step costs one unit of loss."""
    columns: Tensor
    """(cols,) float16, what the steps of a column are multiplied by; empty: by nothing."""
    rows_cost: Tensor
    """(rows,) half the curvature of the loss along a row, for errors measured by the gram."""
    columns_cost: Tensor
    """(cols,) what a squared error in a column, divided by its scale, adds after GPTQ; or one."""


def balance(
    rows: int, feedback: Feedback | None, *, trace: float, squares: Tensor | None
) -> Balance:
    """Relative steps of rows and columns.

    Args:
        rows: Of the matrix.
        feedback: Of its gram; without it all columns count the same, and `columns` is empty.
        trace: Of the gram, or the number of columns.
        squares: (rows,) mean squared gradients, summed over columns; without it all rows count
            the same, by 2.

    Source
        Reverse water-filling (Cover and Thomas, section 10.3.3) over the successive quantiser that
        GPTQ is (Chen et al. 2025, arXiv:2507.18553).
    """
    columns, cost = torch.empty(0, dtype=torch.float16), torch.ones((), dtype=torch.float64)
    if feedback is not None:
        levers = torch.empty(len(feedback.order), dtype=torch.float64)
        levers[feedback.order] = feedback.factor.diagonal()
        middle = levers.log().mean().exp()
        columns = on_grid((levers / middle).clamp(1 / _WIDEST, _WIDEST), 0.5)
        cost = (columns.double() / levers).square()
    curvature = torch.full((rows,), 2.0 * max(trace, 1e-30), dtype=torch.float64)
    if squares is not None:
        curvature = squares.flatten().double()
    curvature = curvature / max(trace, 1e-30)
    curvature = (curvature + _RARE * curvature.mean()).clamp_min(1e-20)
    return Balance(
        steps=(0.5 * curvature * cost.mean()).rsqrt(),
        columns=columns,
        rows_cost=0.5 * curvature,
        columns_cost=cost,
    )


def on_grid(steps: Tensor, offsets: Tensor | float) -> Tensor:
    """Steps as float16 with few different values: eight for each power of two.

    Shapes
        steps    (n,)  float64, above zero
        offsets  (n,) or a number, 0 to 1: 0.5 rounds to the nearest step, other values up or down
                 at another fraction, so that a small change of all steps moves some and not all
    """
    held = steps.clamp(_SMALLEST, _LARGEST)
    mantissa, exponent = torch.frexp(held)  # 0.5 to 1
    parts = (mantissa * (2 * _PARTS) + (offsets - 0.5)).round()
    return torch.ldexp(parts, exponent - 1).div_(_PARTS).clamp_(_SMALLEST, _LARGEST).half()


def spread(count: int) -> Tensor:
    """Offsets for `on_grid` that fill 0 to 1 evenly, whatever part of them is taken."""
    golden = 0.6180339887498949
    return (torch.arange(count, dtype=torch.float64) * golden + 0.5).remainder(1.0)
