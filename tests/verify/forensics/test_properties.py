"""Protects against false alarms and blind spots: records are drawn, mistakes planted in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speedrun.verify.forensics.findings import Severity

QUIET = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def plans(draw: st.DrawFn, dialects: tuple[str, ...] = ("colon", "slash", "ternary")) -> dict:
    """What the runs of a record have in common, and the seed and score of each."""
    code = draw(st.integers(10_000, 150_000))
    seeds = draw(st.lists(st.integers(0, 99_999), min_size=3, max_size=5, unique=True))
    centre = draw(st.integers(900, 1_400))
    return {
        "dialect": draw(st.sampled_from(dialects)),
        "shared": {
            "split": draw(st.sampled_from(["sp1024", "sp4096", "sp8192"])),
            "batch": draw(st.sampled_from([393_216, 524_288, 786_432])),
            "code": code,
        },
        "runs": [
            {
                "seed": seed,
                # The last digit is no zero, which JSON would not show.
                "bpb": (10 * centre + 20 * index + draw(st.integers(1, 9))) / 10_000 + 0.00003,
                "step_ms": draw(st.floats(41.0, 129.0)),
                "train_ms": float(draw(st.integers(580_000, 599_899))),
                "model": draw(st.integers(15_000_000, 16_000_000 - code)),
                "eval_ms": float(draw(st.integers(1_000, 600_000))),
            }
            for index, seed in enumerate(seeds)
        ],
    }


@pytest.fixture
def build(new_record: Any, new_run: Any, tmp_path_factory: Any) -> Callable[[dict], Any]:
    def build(plan: dict) -> Any:
        folder = tmp_path_factory.mktemp("track_10min_16mb") / "2026-04-01_Idea"
        runs = [new_run(**plan["shared"], **run) for run in plan["runs"]]
        return new_record(folder, plan["dialect"], runs).fill()

    return build


@QUIET
@given(plan=plans())
def test_a_record_that_adds_up_gives_no_finding(build, plan):
    assert [str(finding) for finding in build(plan).findings()] == []


def _scale_times(record: Any, factor: float) -> None:
    name = next(iter(record.logs))
    record.logs[name] = re.sub(
        r"(train_time:|t:)(\d+)ms",
        lambda match: f"{match[1]}{int(int(match[2]) * factor)}ms",
        record.logs[name],
    )


def _add_bytes(record: Any, excess: int) -> None:
    name = next(iter(record.logs))
    size = 16_000_000 + excess
    record.logs[name] = re.sub(
        r"(budget:|submission size \S+ )\d+", rf"\g<1>{size}", record.logs[name]
    )


def _better_claim(record: Any, delta: float) -> None:
    seed = next(iter(record.claims["seed_results"]))
    record.claims["seed_results"][seed]["val_bpb"] -= delta


def _other_seed(record: Any, _: float) -> None:
    first, second, *_rest = record.runs
    text = record.logs[f"train_seed{first.seed}.log"]
    changed = re.sub(rf"(seed[:=]\s?|s:){first.seed}\b", rf"\g<1>{second.seed}", text)
    record.logs[f"train_seed{second.seed}.log"] = changed


def _lose_log(record: Any, _: float) -> None:
    record.logs.popitem()


def _report_best(record: Any, _: float) -> None:
    record.claims["val_bpb"] = min(
        entry["val_bpb"] for entry in record.claims["seed_results"].values()
    )


def _shrink_spread(record: Any, share: float) -> None:
    record.claims["val_bpb_std"] = float(f"{record.claims['val_bpb_std'] * share:.5f}1")


def _inflate_bytes(record: Any, factor: float) -> None:
    for run in record.runs:
        run.byte_factor = factor
        run.bpb /= factor
    record.fill()


def _cut_split(record: Any, share: float) -> None:
    for name, text in record.logs.items():
        record.logs[name] = re.sub(
            r"(tokens[:=]\s?)(62021632|45508608|40540160)",
            lambda match: f"{match[1]}{int(int(match[2]) * share)}",
            text,
        )


def _late_stop(record: Any, seconds: float) -> None:
    name = next(iter(record.logs))
    record.logs[name] = re.sub(
        r"(cap train_time:\s?)\d+", rf"\g<1>{int(600_001 + 1000 * seconds)}", record.logs[name]
    )


PLANTS = {
    "step-times": (("colon", "ternary"), st.floats(0.3, 0.97), _scale_times),
    "size": (("colon", "slash", "ternary"), st.integers(1, 10**9), _add_bytes),
    "claim-not-in-logs": (("colon", "slash", "ternary"), st.floats(0.02, 0.5), _better_claim),
    "same-run": (("colon", "slash", "ternary"), st.just(0.0), _other_seed),
    "seed-without-log": (("colon", "slash", "ternary"), st.just(0.0), _lose_log),
    "best-seed": (("colon", "slash", "ternary"), st.just(0.0), _report_best),
    "spread": (("colon", "slash"), st.floats(0.0, 0.8), _shrink_spread),
    "byte-count": (("colon", "slash"), st.floats(1.02, 1.4), _inflate_bytes),
    "validation-split": (("colon", "slash"), st.floats(0.01, 0.99), _cut_split),
    "training-time": (("colon", "slash", "ternary"), st.floats(0.0, 1e6), _late_stop),
}


@pytest.mark.parametrize("id", PLANTS)
@settings(QUIET, max_examples=8)
@given(data=st.data())
def test_a_planted_mistake_gives_its_own_finding(build, id, data):
    dialects, amounts, plant = PLANTS[id]
    record = build(data.draw(plans(dialects)))
    plant(record, data.draw(amounts))
    assert id in record.ids(Severity.BROKEN, Severity.CONTRADICTION)
