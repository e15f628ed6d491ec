"""Protects the numbers that decide whether a record falls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from speedrun.errors import RecordError
from speedrun.stats import (
    MOST_SEEDS,
    compare,
    margin_in_bpb,
    p_if_chosen,
    reach_of_one_more,
    seeds_needed,
    summarise,
)


def test_a_summary_of_three_seeds_worked_by_hand() -> None:
    found = summarise([1.0, 2.0, 3.0])
    assert (found.num_seeds, found.mean, found.spread) == (3, 2.0, 1.0)
    # t(0.975, 2) = 4.3027 from a printed table, over sqrt(3).
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert str(found) == "2.0000 ± 1.0000 (n=3)"


def test_one_seed_has_a_mean_and_no_spread_to_show() -> None:
    assert str(summarise([1.25])) == "1.2500 (n=1, spread unknown)"


def test_welch_of_two_triples_worked_by_hand() -> None:
    # Variances 1 and 4: standard error sqrt(5 / 3); degrees (5/3)^2 / ((1/3)^2/2 + (4/3)^2/2).
    found = compare([1.0, 2.0, 3.0], [4.0, 6.0, 8.0], margin=1.0)
    assert (found.gain, found.t) == (4.0, pytest.approx(3 / math.sqrt(5 / 3)))
    assert found.degrees == pytest.approx(50 / 17)
    assert 0.03 < found.p < 0.06


def test_test_and_intervals_agree_with_scipy_on_random_seeds() -> None:
    dice = np.random.default_rng(11)
    for _ in range(50):
        new = dice.normal(1.1, dice.uniform(0.001, 0.01), dice.integers(2, 8)).tolist()
        old = dice.normal(1.11, dice.uniform(0.001, 0.01), dice.integers(2, 8)).tolist()
        margin = float(dice.uniform(0, 0.01))
        found = compare(new, old, margin=margin)
        shifted = [value - margin for value in old]
        expected = stats.ttest_ind(new, shifted, equal_var=False, alternative="less")
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
        assert found.t == pytest.approx(-expected.statistic)
        # scipy's intervals are of new minus old: ours, turned round.
        assert found.at_least(0.99) == pytest.approx(
            margin - expected.confidence_interval(0.99).high, abs=1e-9
        )
        both = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
        assert found.interval() == pytest.approx((-both.high, -both.low), abs=1e-9)


def test_a_holder_of_one_seed_is_a_constant_as_in_a_one_sample_test() -> None:
    new = [1.101, 1.104, 1.099]
    expected = stats.ttest_1samp(new, 1.11, alternative="less")
    found = compare(new, [1.11])
    assert (found.p, found.degrees) == (pytest.approx(expected.pvalue), 2)


def test_the_lower_bound_touches_the_margin_where_p_touches_the_level() -> None:
    new, old = [1.101, 1.104, 1.099], [1.108, 1.111, 1.105, 1.107]
    bound = compare(new, old).at_least(0.99)
    assert compare(new, old, margin=bound).p == pytest.approx(0.01)


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


def test_margins_of_the_golf_contest_in_bpb() -> None:
    # sp1024: 62,021,632 tokens tell 151,080,169 bytes; published as 0.00296.
    found = margin_in_bpb(0.005, num_tokens=62_021_632, num_bytes=151_080_169)
    assert found == pytest.approx(0.00296, abs=5e-6)
    with pytest.raises(RecordError, match="0 bytes"):
        margin_in_bpb(0.005, num_tokens=1, num_bytes=0)


def test_seeds_that_settle_it_if_the_mean_stays_worked_by_hand() -> None:
    # Spread 1 and a holder of one value 1.5 away: t = 1.5 sqrt(n) has to reach t(0.99, n - 1), from
    # a printed table 6.965, 4.541, 3.747, 3.365 for n = 3 to 6: 2.60, 3.00, 3.35, 3.67.
    found = seeds_needed([-1.0, 0.0, 1.0], [1.5], p_value=0.01)
    assert found.if_mean_stays == 6
    already = seeds_needed([-1.0, 0.0, 1.0], [10.0], p_value=0.01)
    assert already.if_mean_stays == 3


def test_power_is_the_share_of_experiments_that_show_the_gain() -> None:
    dice = np.random.default_rng(3)
    new, old = [-1.0, 0.0, 1.0], [2.0, 3.0, 4.0, 5.0, 6.0]
    found = seeds_needed(new, old, p_value=0.05, margin=1.0)
    # The same spreads and means, drawn again: the statistic that this calculation is about.
    first, second = dice.normal(0, 1, (20_000, 3)), dice.normal(4, math.sqrt(2.5), (20_000, 5))
    p = stats.ttest_ind(first, second - 1.0, axis=1, equal_var=False, alternative="less").pvalue
    assert found.power_now == pytest.approx(float((p <= 0.05).mean()), abs=0.03)


def test_seeds_for_power_are_the_fewest_that_have_it() -> None:
    found = seeds_needed([-1.0, 0.0, 1.0], [1.0], p_value=0.05)
    assert found.for_power == 8
    dice = np.random.default_rng(6)
    shown = {}
    for num_seeds in (7, 8):  # a gain of one standard deviation, drawn
        drawn = dice.normal(-1.0, 1.0, (40_000, num_seeds))
        p = stats.ttest_1samp(drawn, 0.0, axis=1, alternative="less").pvalue
        shown[num_seeds] = float((p <= 0.05).mean())
    assert shown[7] < 0.8 < shown[8]
    smaller = seeds_needed([-1.0, 0.0, 1.0], [1.0], p_value=0.05, power=0.5)
    assert smaller.for_power is not None and smaller.for_power < 8
    planned = seeds_needed([-1.0, 0.0, 1.0], [1.0], p_value=0.05, gain=2.0)
    assert planned.for_power is not None and planned.for_power < 8


def test_some_gains_are_shown_by_no_number_of_seeds() -> None:
    # The holder's own error stays, however many seeds the challenger brings.
    vague = seeds_needed([0.99, 1.0, 1.01], [0.9, 1.1, 1.3], p_value=0.01)
    assert (vague.if_mean_stays, vague.for_power) == (None, None)
    worse = seeds_needed([1.0, 1.1], [0.9, 0.8], p_value=0.01)
    assert (worse.if_mean_stays, worse.for_power) == (None, None) and worse.power_now < 0.01
    assert MOST_SEEDS >= 100


def test_seeds_without_any_spread_need_no_more() -> None:
    found = seeds_needed([1.0, 1.0], [1.1, 1.1], p_value=0.01, margin=0.05)
    assert (found.if_mean_stays, found.for_power, found.power_now) == (2, 2, 1.0)
    none = seeds_needed([1.0, 1.0], [1.1, 1.1], p_value=0.01, margin=0.2)
    assert (none.if_mean_stays, none.for_power, none.power_now) == (None, None, 0.0)


def test_one_more_seed_stays_within_reach_as_often_as_it_says() -> None:
    dice = np.random.default_rng(8)
    known, new = dice.normal(size=(20_000, 3)), dice.normal(size=20_000)
    spread = known.std(axis=1, ddof=1)
    reach = np.array([reach_of_one_more(s, num_seeds=3, degrees=2) for s in spread[:200]])
    assert reach == pytest.approx(spread[:200] * 6.9646 * math.sqrt(4 / 3), rel=1e-4)
    share = float((new <= known.mean(axis=1) + spread * reach[0] / spread[0]).mean())
    assert share == pytest.approx(0.99, abs=0.003)
    exact = reach_of_one_more(1.0, num_seeds=1, degrees=math.inf)
    assert exact == pytest.approx(2.3263 * math.sqrt(2), rel=1e-4)


def test_the_best_of_many_runs_is_weaker_evidence() -> None:
    assert p_if_chosen(0.001, chosen=3, runs=3) == 0.001
    # 10 ways to choose 3 of 5.
    assert p_if_chosen(0.001, chosen=3, runs=5) == pytest.approx(0.01)
    assert p_if_chosen(0.2, chosen=3, runs=900) == 1.0
    assert p_if_chosen(0.0, chosen=3, runs=900) == 0.0
    # Nothing is gained by the better half of ten draws: the bound keeps false alarms at the level.
    dice = np.random.default_rng(4)
    best = np.sort(dice.normal(size=(4_000, 6)), axis=1)[:, :3]
    p = stats.ttest_1samp(best, 0.0, axis=1, alternative="less").pvalue
    assert (p <= 0.05).mean() > 0.3
    corrected = [p_if_chosen(float(each), chosen=3, runs=6) for each in p]
    assert np.mean(np.array(corrected) <= 0.05) < 0.05
