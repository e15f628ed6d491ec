"""Rounding that mends its own errors: each column's error is passed on to the columns after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from speedrun.errors import QuantError
from speedrun.quant.rows import check_matrix, max_code

_BLOCK = 128  # columns worked on before their errors reach the rest: one block stays in the cache


def gptq_rows(
    weight: Tensor, scales: Tensor, gram: Tensor, *, bits: int, damping: float = 0.01
) -> Tensor:
    """Codes for given scales with little error in the layer's outputs, not in its weights.

    Columns are rounded one after another, those with the largest inputs first. The error of each is
    made up for by the columns that are still open, as far as inputs correlate.

    Shapes
        weight  (rows, cols)  float32
        scales  (rows,)       float16, above zero
        gram    (cols, cols)  float32 or float64, mean of x x^T over the layer's inputs x
        result  (rows, cols)  int8, -max_code..max_code

    Raises
        QuantError: shapes differ, or a scale or the gram is not what it has to be.

    Source
        GPTQ: Frantar et al. 2022, arXiv:2210.17323; column order by diagonal, damping of 1 % of its
        mean and blocks of 128 as in parameter-golf PR #1019. Ours differs: all in float64 and one
        thread, so that the codes do not depend on how many there are.
    """
    check_matrix(weight)
    if scales.shape != weight.shape[:1] or not bool((scales > 0).all()):
        raise QuantError(f"{tuple(scales.shape)} scales for {len(weight):,} rows, need one above 0")
    largest = max_code(bits)
    if not weight.numel():
        return torch.zeros(weight.shape, dtype=torch.int8)
    with one_thread():
        order = column_order(gram)
        factor = inverse_factor(gram, order, damping=damping)
        # Columns lie contiguously: each is read and written whole.
        open_CR = weight.double().T[order].contiguous()
        codes_CR = torch.empty(open_CR.shape, dtype=torch.int8)
        steps = scales.double()
        for start in range(0, len(open_CR), _BLOCK):
            part = open_CR[start : start + _BLOCK]
            here = factor[start : start + _BLOCK]
            errors = torch.empty_like(part)
            for column in range(len(part)):
                codes = torch.div(part[column], steps).round_().clamp_(-largest, largest)
                codes_CR[start + column] = codes
                error = (part[column] - codes * steps).div_(here[column, start + column])
                part[column:].addr_(
                    here[column, start + column : start + len(part)], error, alpha=-1
                )
                errors[column] = error
            open_CR[start + _BLOCK :].addmm_(here[:, start + _BLOCK :].T, errors, alpha=-1)
        result = torch.empty_like(codes_CR)
        result[order] = codes_CR
    return result.T.contiguous()


def column_order(gram: Tensor) -> Tensor:
    """Columns by falling mean square of their inputs; (cols,) int64."""
    return gram.diagonal().argsort(descending=True, stable=True)


def inverse_factor(gram: Tensor, order: Tensor, *, damping: float = 0.01) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped gram, columns in `order`; float64.

    Its diagonal says how much an error costs that later columns make up for as well as they can:
    an error e in column j adds (e / factor[j, j])^2 to the summed squares of the outputs.

    Raises
        QuantError: the gram is not a finite square matrix of sums of squares.
    """
    if gram.ndim != 2 or len(gram) != gram.shape[1] or not bool(gram.isfinite().all()):
        raise QuantError(f"gram of shape {tuple(gram.shape)}, need a finite square matrix")
    damped = gram.double()[order][:, order]
    diagonal = damped.diagonal()
    if bool((diagonal < 0).any()):
        raise QuantError("gram has a negative mean square on its diagonal")
    # A column without input may take any code; 1 keeps its own rounding undisturbed.
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise QuantError(
            f"gram is not positive at column {int(failed)} with damping {damping}; "
            "it was not summed from inputs, or needs more damping"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums that do not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
