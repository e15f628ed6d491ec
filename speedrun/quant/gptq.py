"""Rounding that mends its own errors: each column's error is passed on to the columns after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from speedrun.errors import QuantError
from speedrun.quant.rows import check_matrix

_BLOCK = 128  # columns worked on before their errors reach the rest: one block stays in the cache


class Feedback(NamedTuple):
    """How a column's error is passed on: made once for a gram, for all that read these inputs."""

    order: Tensor
    """(cols,) int64, columns as they are rounded: those with the largest inputs first."""
    factor: Tensor
    """(cols, cols) float64, upper Cholesky factor of the inverse of the damped gram, in this order.
    An error e in column j that later columns make up for adds (e / factor[j, j])^2 to the squares
    of the outputs."""


def feedback_of(gram: Tensor, *, damping: float = 0.01) -> Feedback:
    """Invert and factor a gram, (cols, cols), the mean of x x^T over a layer's inputs x.

    Raises
        QuantError: the gram is not a finite square matrix of sums of squares.
    """
    if gram.ndim != 2 or len(gram) != gram.shape[1] or not bool(gram.isfinite().all()):
        raise QuantError(f"gram of shape {tuple(gram.shape)}, need a finite square matrix")
    order = gram.diagonal().argsort(descending=True, stable=True)
    damped = gram.double()[order][:, order]
    diagonal = damped.diagonal()
    if bool((diagonal < 0).any()):
        raise QuantError("gram has a negative mean square on its diagonal")
    # A column without input may take any code; 1 keeps its own rounding undisturbed.
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    with one_thread():
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            raise QuantError(
                f"gram is not positive at column {int(failed)} with damping {damping}; "
                "it was not summed from inputs, or needs more damping"
            )
        factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return Feedback(order, factor)


def gptq_rows(weight: Tensor, scales: Tensor, feedback: Feedback, *, largest: int) -> Tensor:
    """Codes for given scales with little error in the layer's outputs, not in its weights.

    Columns are rounded one after another; the error of each is made up for by the columns that are
    still open, as far as inputs correlate.

    Shapes
        weight  (rows, cols)  float32
        scales  (rows,)       float16, above zero
        result  (rows, cols)  int8, or int16 above 127; -largest..largest

    Raises
        QuantError: shapes differ, or a scale is not above zero.

    Source
        GPTQ: Frantar et al. 2022, arXiv:2210.17323; column order by diagonal, damping of 1 % of its
        mean and blocks of 128 as in parameter-golf PR #1019. Ours differs: all in float64 and one
        thread, so that the codes do not depend on how many there are.
    """
    check_matrix(weight)
    if scales.shape != weight.shape[:1] or not bool((scales > 0).all()):
        raise QuantError(f"{tuple(scales.shape)} scales for {len(weight):,} rows, need one above 0")
    order, factor = feedback
    if order.shape != weight.shape[1:]:
        raise QuantError(f"feedback of {len(order):,} columns for {weight.shape[1]:,}")
    with one_thread():
        # Columns lie contiguously: each is read and written whole.
        open_columns = weight.double().T[order].contiguous()
        dtype = torch.int8 if largest <= 127 else torch.int16
        codes = torch.empty(open_columns.shape, dtype=dtype)
        steps = scales.double()
        for start in range(0, len(open_columns), _BLOCK):
            part = open_columns[start : start + _BLOCK]
            here = factor[start : start + len(part)]
            errors = torch.empty_like(part)
            for column in range(len(part)):
                rounded = torch.div(part[column], steps).round_().clamp_(-largest, largest)
                codes[start + column] = rounded
                passed_on = here[column, start + column : start + len(part)]
                error = torch.addcmul(part[column], rounded, steps, value=-1).div_(passed_on[0])
                part[column:].addr_(passed_on, error, alpha=-1)
                errors[column] = error
            open_columns[start + _BLOCK :].addmm_(here[:, start + _BLOCK :].T, errors, alpha=-1)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums that do not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
