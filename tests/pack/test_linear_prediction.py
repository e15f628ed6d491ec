"""Protects the prediction of codes: exact inverse, the format's numbers, and worth its while."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from speedrun.pack.linear_prediction import MAX_PRIOR, MAX_WORK, residuals, restored, work_of


def slowly_restored(stored: np.ndarray, prior: int) -> np.ndarray:
    """FORMAT.md once more, number by number in plain Python."""
    rows, cols = stored.shape
    found = stored.astype(int).tolist()
    start = 16
    while start < rows:
        stop = min(start + max(16, min(start // 2, cols // 4)), rows)
        known = [[64, *row] for row in found[:start]]
        rest = [
            [float(sum(row[i] * row[j] for row in known)) for j in range(cols + 1)]
            for i in range(cols + 1)
        ]
        squares = sum(rest[i][i] for i in range(1, cols + 1))
        for i in range(1, cols + 1):
            rest[i][i] += max(squares / cols, 1.0) * (2.0**prior / start)
        links = [[0.0] * (cols + 1) for _ in range(cols + 1)]
        for k in range(cols):
            for i in range(k + 1, cols + 1):
                links[i][k] = rest[i][k] / rest[k][k]
            column = [rest[i][k] for i in range(cols + 1)]
            for i in range(k + 1, cols + 1):
                for j in range(k + 1, cols + 1):
                    rest[i][j] -= links[i][k] * column[j]
        for row in range(start, stop):
            expected = [0.0] * (cols + 1)
            for col in range(cols + 1):
                surprise = 64.0
                if col:
                    guess = min(max(round(expected[col]), -127), 127)
                    found[row][col - 1] = (found[row][col - 1] + guess + 128) % 256 - 128
                    surprise = found[row][col - 1] - expected[col]
                for later in range(col + 1, cols + 1):
                    expected[later] += links[later][col] * surprise
        start = stop
    return np.array(found, np.int8).reshape(rows, cols)


@settings(max_examples=60, deadline=None)
@given(
    codes=npst.arrays(np.int8, st.tuples(st.integers(0, 60), st.integers(0, 7))),
    prior=st.integers(1, MAX_PRIOR),
)
def test_any_codes_come_back(codes: np.ndarray, prior: int) -> None:
    assert np.array_equal(restored(residuals(codes, prior), prior), codes)


@pytest.mark.parametrize("prior", [1, 5, 12])
def test_agrees_with_a_slow_reading_of_the_format(prior: int) -> None:
    rng = np.random.default_rng(prior)
    codes = np.rint(20 * rng.standard_normal((70, 5)) @ rng.standard_normal((5, 5))).clip(-127, 127)
    stored = residuals(codes.astype(np.int8), prior)
    assert np.array_equal(slowly_restored(stored, prior), codes)


def test_what_follows_from_other_columns_is_gone() -> None:
    rng = np.random.default_rng(0)
    first = np.rint(30 * rng.standard_normal(400)).clip(-100, 100)
    codes = np.stack([first, -first, first + 20, np.full(400, 7)], axis=1).astype(np.int8)
    left = residuals(codes, 1)[100:]
    assert np.abs(left[:, 0]).mean() > 15
    assert np.abs(left[:, 1:]).max() <= 2


def test_few_rows_of_many_columns_stay_as_they_are() -> None:
    codes = np.full((16, 100_000), 3, np.int8)
    assert np.array_equal(residuals(codes, 5), codes)


def test_work_grows_with_the_matrix_and_ends_at_huge_ones() -> None:
    assert 0 < work_of(16, 100) < work_of(17, 100) < work_of(1_024, 128)
    assert work_of(1_024, 128) < work_of(1_024, 512) < MAX_WORK < work_of(10**9, 3)
