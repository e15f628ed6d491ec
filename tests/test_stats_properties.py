"""Protects the statistics on scores that nobody thought of: they agree with scipy on them."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speedrun.stats import compare, seeds_needed, summarise

# Scores as a contest has them. Equal ones have no spread, which the worked examples cover.
SCORE = st.floats(0.5, 3.0).map(lambda value: round(value, 6))
SEEDS = st.lists(SCORE, min_size=2, max_size=8, unique=True)
MARGIN = st.floats(0.0, 0.1)
QUICK = settings(max_examples=60, deadline=None)


@QUICK
@given(SEEDS)
def test_mean_spread_and_interval_are_those_of_scipy(scores: list[float]) -> None:
    found = summarise(scores)
    assert found.mean == pytest.approx(statistics.fmean(scores))
    error = float(stats.sem(scores))
    low, high = stats.t.interval(0.95, len(scores) - 1, loc=found.mean, scale=error)
    assert (found.low, found.high) == pytest.approx((low, high))


@QUICK
@given(SEEDS, SEEDS, MARGIN)
def test_welch_is_that_of_scipy(new: list[float], old: list[float], margin: float) -> None:
    found = compare(new, old, margin=margin)
    shifted = [value - margin for value in old]
    expected = stats.ttest_ind(new, shifted, equal_var=False, alternative="less")
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.t == pytest.approx(-expected.statistic, rel=1e-6, abs=1e-9)
    assert found.degrees == pytest.approx(expected.df, rel=1e-6)


@QUICK
@given(SEEDS, SCORE)
def test_a_holder_of_one_seed_is_scipys_one_sample_test(new: list[float], old: float) -> None:
    expected = stats.ttest_1samp(new, old, alternative="less")
    assert compare(new, [old]).p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@QUICK
@given(SEEDS, SEEDS)
def test_two_sides_of_a_comparison_add_up(new: list[float], old: list[float]) -> None:
    one, other = compare(new, old), compare(old, new)
    assert one.p + other.p == pytest.approx(1.0)
    assert one.interval() == pytest.approx(tuple(-end for end in reversed(other.interval())))


@settings(max_examples=8, deadline=None)  # a gain that is never shown takes a second to tell
@given(SEEDS, SEEDS, st.floats(0.001, 0.2))
def test_the_seeds_needed_are_the_fewest_that_would_do(
    new: list[float], old: list[float], level: float
) -> None:
    found = seeds_needed(new, old, p_value=level).if_mean_stays
    gain = compare(new, old).gain
    if found is None or found == len(new):
        # Never, or already: which of them, the test itself says.
        assert found is None or compare(new, old).p <= level * (1 + 1e-9)
        return
    for seeds, enough in ((found, True), (found - 1, False)):
        expected = stats.ttest_ind_from_stats(
            *(-gain, statistics.stdev(new), seeds),
            *(0.0, statistics.stdev(old), len(old)),
            equal_var=False,
            alternative="less",
        )
        assert (expected.pvalue <= level) == enough or math.isclose(expected.pvalue, level)
