"""Protects the numbers that decide whether a record falls."""

from __future__ import annotations

import math

import pytest

from speedrun.errors import RecordError
from speedrun.records.stats import compare, summarise


def test_a_summary_of_three_seeds_worked_by_hand() -> None:
    found = summarise([1.0, 2.0, 3.0])
    assert (found.num_seeds, found.mean, found.spread) == (3, 2.0, 1.0)
    # t(0.975, 2) = 4.3027 from a printed table, over sqrt(3).
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert str(summarise([1.25])) == "1.2500 ± 0.0000 (n=1)"


def test_welch_of_two_triples_worked_by_hand() -> None:
    # Variances 1 and 4: standard error sqrt(5 / 3); degrees (5/3)^2 / ((1/3)^2/2 + (4/3)^2/2).
    found = compare([1.0, 2.0, 3.0], [4.0, 6.0, 8.0], margin=1.0)
    assert (found.gain, found.t) == (4.0, pytest.approx(3 / math.sqrt(5 / 3)))
    assert found.degrees == pytest.approx(50 / 17)
    assert 0.03 < found.p < 0.06


def test_welch_agrees_with_scipy_when_there_is_no_margin() -> None:
    from scipy import stats

    new, old = [1.101, 1.104, 1.099], [1.108, 1.111, 1.105, 1.107]
    expected = stats.ttest_ind(new, old, equal_var=False, alternative="less")
    found = compare(new, old)
    assert (found.p, found.t) == (
        pytest.approx(expected.pvalue),
        pytest.approx(-expected.statistic),
    )


def test_a_gain_below_the_margin_is_no_evidence() -> None:
    assert compare([1.0, 1.001, 0.999], [1.002, 1.003, 1.001], margin=0.003).p > 0.5


def test_equal_seeds_on_both_sides_decide_without_a_spread() -> None:
    assert compare([1.0, 1.0], [1.1, 1.1], margin=0.05).p == 0.0
    assert compare([1.0, 1.0], [1.0, 1.0]).p == 0.5
    assert compare([1.1, 1.1], [1.0, 1.0]).p == 1.0


@pytest.mark.parametrize(
    ("new", "old"), [([], [1.0]), ([1.0], [1.0, 2.0]), ([1.0, math.nan], [1.0]), ([1.0, 2.0], [])]
)
def test_what_has_no_spread_or_no_number_is_refused(new: list[float], old: list[float]) -> None:
    with pytest.raises(RecordError):
        compare(new, old)
