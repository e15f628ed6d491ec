"""Protects records from luck: what seeds show, what they do not, and how many more would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from speedrun.stats import compare, seeds_needed
from speedrun.tracks.load import RecordRule, Track
from speedrun.verify.significance import significance
from speedrun.verify.verdict import RuleResult, Status

TRACK = Track(
    name="test", version=1, summary="", train_seconds=60.0, eval_seconds=60.0, cap_bytes=1,
    corpus="none", recipe="none", hardware="any",
    record=RecordRule(seeds=3, margin_nats_per_token=0.005, p_value=0.01),
)  # fmt: skip
TEXT = {"num_tokens": 1_000, "num_bytes": 2_500}
MARGIN = 0.005 / math.log(2) / 2.5
RECORD = [1.500, 1.501, 1.499]


def judge(measured: list[float], standing: list[float] | None = RECORD, **rest: Any) -> RuleResult:
    found = significance(measured, standing, TRACK, **TEXT, **rest)
    assert found.id == "significance" and "\n" not in found.evidence + found.fix
    return found


def test_a_clear_gain_passes_with_the_p_of_welch() -> None:
    new = [1.480, 1.481, 1.479]
    found = judge(new)
    shifted = [value - MARGIN for value in RECORD]
    p = stats.ttest_ind(new, shifted, equal_var=False, alternative="less").pvalue
    assert found.status is Status.PASS
    assert found.measured == f"gain +0.0200 bpb, p = {p:.2g} (3 seeds)"
    assert found.limit == "> 0.0029 bpb at p <= 0.01, 3 seeds"
    for word in ("1.4800 ± 0.0010 (n=3) against 1.5000 ± 0.0010 (n=3)", "95 % interval", "at 99 %"):
        assert word in found.evidence


def test_a_mean_within_the_margin_fails() -> None:
    found = judge([1.4975, 1.4976, 1.4974])
    assert found.status is Status.FAIL
    assert "a gain of 0.0029 bpb" in found.fix
    assert judge([1.6, 1.6001, 1.5999]).status is Status.FAIL


def test_a_lucky_gain_is_undecided_with_the_seeds_that_would_settle_it() -> None:
    new = [1.490, 1.496, 1.484]
    found = judge(new)
    needed = seeds_needed(new, RECORD, p_value=0.01, margin=MARGIN)
    assert needed.if_mean_stays is not None and needed.for_power is not None
    assert found.status is Status.UNDECIDED
    assert f"{needed.if_mean_stays - 3} more seed" in found.fix
    assert f"{needed.for_power - 3} more seeds find a true gain of this size with 80 %" in found.fix
    # And so it is: so many seeds of the same mean and spread pass, and one fewer does not.
    for count, status in ((needed.if_mean_stays, "PASS"), (needed.if_mean_stays - 1, "UNDECIDED")):
        drawn = np.linspace(-1, 1, count)
        assert judge((1.490 + 0.006 * drawn / drawn.std(ddof=1)).tolist()).status == status


def test_a_record_of_wild_seeds_is_beaten_by_no_number_of_them() -> None:
    found = judge([1.45, 1.451, 1.449], [1.3, 1.5, 1.7])
    assert found.status is Status.UNDECIDED
    assert "no number of seeds up to 1,000" in found.fix and "more seeds of the record" in found.fix


def test_one_seed_has_no_p_value() -> None:
    found = judge([1.0])
    assert found.status is Status.UNDECIDED
    assert "p =" not in found.measured + found.evidence
    assert "one seed has no spread" in found.evidence and found.fix == "hand in 2 more seeds"


def test_two_seeds_are_fewer_than_the_track_asks_for_however_clear() -> None:
    found = judge([1.0, 1.0001])
    assert (found.status, "hand in 1 more seed" in found.fix) == (Status.UNDECIDED, True)


def test_a_record_of_one_seed_is_called_what_it_is() -> None:
    found = judge([1.480, 1.481, 1.479], [1.5])
    assert found.status is Status.PASS
    assert "one seed is known, taken as exact" in found.evidence


def test_the_first_record_needs_its_seeds_and_nothing_to_beat() -> None:
    assert judge([1.5, 1.6, 1.7], None).status is Status.PASS
    found = judge([1.5, 1.6], None)
    assert (found.status, found.fix) == (Status.UNDECIDED, "hand in 1 more seed")


def test_the_margin_of_a_track_without_one_is_zero() -> None:
    track = Track(**{**TRACK.to_dict(), "record": RecordRule(), "fingerprint": TRACK.fingerprint})
    assert significance([1.4, 1.41, 1.39], RECORD, track, **TEXT).limit.startswith("> 0.0000 bpb")


@pytest.mark.parametrize(
    ("values", "seeds", "said"),
    [
        ([1.480, 1.481, 1.479], (42, 43, 42), "seed 42 comes more than once"),
        ([1.480, 1.480, 1.479], (42, 43, 44), "to the last digit"),
        ([1.480, math.nan, 1.479], (42, 43, 44), "not every submission has a score"),
        ([], (), "not every submission has a score"),
    ],
)
def test_seeds_that_are_no_independent_runs_decide_nothing(
    values: list[float], seeds: tuple[int, ...], said: str
) -> None:
    found = judge(values, seeds=seeds)
    assert found.status is Status.UNDECIDED and said in found.evidence


def test_the_best_three_of_many_are_tested_with_the_others() -> None:
    best = [1.480, 1.481, 1.479]
    assert judge(best).status is Status.PASS
    found = judge(best, undeclared=[1.51, 1.50, 1.52])
    assert found.status is Status.UNDECIDED
    assert "with the 3 runs that were not handed in: gain +0.0050" in found.evidence
    assert found.fix == "hand in every run of the recipe"
    # Runs that did as well take nothing away.
    assert judge(best, undeclared=[1.4801, 1.4799]).status is Status.PASS


def test_runs_of_unknown_score_weaken_p_by_the_choices_there_were() -> None:
    best = [1.4850, 1.4875, 1.4835]
    p = compare(best, RECORD, margin=MARGIN).p
    assert judge(best).status is Status.PASS
    found = judge(best, undeclared=[None, None, None, 1.5])
    # 35 ways to choose 3 of 7.
    assert found.status is Status.UNDECIDED
    assert f"best of 7, p = {p:.2g} becomes up to {35 * p:.2g}" in found.evidence
