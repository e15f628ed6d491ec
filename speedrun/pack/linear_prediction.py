"""Codes minus what the rows before them let one expect; the layout is in FORMAT.md.

Rows of an embedding are not independent between their columns: what was learned together points
together. A covariance of the rows already known says how much of a column follows from the columns
before it, so that nothing has to travel but how far to trust it. A reader must arrive at the very
same numbers, so sums are of whole numbers and all else is exactly rounded, element by element: no
library's order of summation can matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_FIRST_ROWS = 16  # are stored as they are, and each new covariance is worth as many rows at least
_UNIT = 64.0  # what stands in every row as column 0, so that a column's mean is a prediction too
_MAX_SYMBOLS = 1 << 22
MAX_WORK = 800_000_000
"""Multiplications that a reader is willing to do for one section: about two seconds."""
MAX_PRIOR = 12

Codes = NDArray[np.int8]
Floats = NDArray[np.float64]


def residuals(codes: Codes, prior: int) -> Codes:
    """Differences to the prediction, modulo 256.

    Shapes
        codes   (rows, cols)  int8
        prior   log2 of how many rows the belief weighs that columns have nothing to do with
                each other
        result  (rows, cols)  int8
    """
    return _run(codes, prior, undo=False)


def restored(codes: Codes, prior: int) -> Codes:
    """Undo `residuals`."""
    return _run(codes, prior, undo=True)


def work_of(rows: int, cols: int) -> int:
    """Multiplications that a matrix takes, about; more than `MAX_WORK` if it is too large."""
    if rows * cols > _MAX_SYMBOLS:
        return MAX_WORK + 1
    blocks = sum(1 for _ in _blocks(rows, cols))
    return blocks * (cols + 1) ** 3 // 3 + rows * (cols + 1) ** 2 // 2


def _run(given: Codes, prior: int, *, undo: bool) -> Codes:
    rows, cols = given.shape
    result = given.copy()
    if rows <= _FIRST_ROWS:  # its columns may be too many for a covariance
        return result
    codes = result if undo else given
    sums, seen = np.zeros((cols + 1, cols + 1)), 0
    for start, stop in _blocks(rows, cols):
        known = np.full((start - seen, cols + 1), _UNIT)
        known[:, 1:] = codes[seen:start]
        sums += known.T @ known  # whole numbers below 2^53, in whatever order
        seen = start
        links = _links(sums, 2.0**prior / start)
        expected = np.zeros((cols + 1, stop - start))
        surprise = np.full(stop - start, _UNIT)
        for col in range(cols + 1):
            if col:
                guess = np.rint(expected[col]).clip(-127, 127)
                found = given[start:stop, col - 1] + (guess if undo else -guess)
                # Modulo 256, so that every residual is a code again.
                result[start:stop, col - 1] = (found + 128) % 256 - 128
                surprise = codes[start:stop, col - 1] - expected[col]
            expected[col + 1 :] += links[col + 1 :, col, None] * surprise
    return result


def _links(sums: Floats, share: float) -> Floats:
    """(n, n), below the diagonal: what a surprise in one column changes in the ones after it.

    The unit lower factor of the ridged matrix; each step is a difference of products of numbers,
    which every machine rounds alike.
    """
    rest, links = sums.copy(), np.zeros_like(sums)
    diagonal = np.einsum("ii->i", rest)[1:]
    diagonal += max(diagonal.sum() / max(len(diagonal), 1), 1.0) * share
    for col in range(len(rest) - 1):
        column = rest[col + 1 :, col].copy()
        links[col + 1 :, col] = column / rest[col, col]
        rest[col + 1 :, col + 1 :] -= np.multiply.outer(links[col + 1 :, col], column)
    return links


def _blocks(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Rows that share a covariance, which is that of all rows before them."""
    start = _FIRST_ROWS
    while start < rows:
        # Of fewer rows than a quarter of the columns the covariance would cost most of the time.
        stop = min(start + max(_FIRST_ROWS, min(start // 2, cols // 4)), rows)
        yield start, stop
        start = stop
