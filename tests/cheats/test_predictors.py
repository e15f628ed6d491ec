"""Every predictor in `predictors/` gains by cheating, is handed in whole, and is caught by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speedrun.data.shards import open_shard
from speedrun.verify.sandbox import Limits
from speedrun.verify.verdict import Status
from tests.cheats.conftest import Court, failed, read_predictor

NAMES = sorted(path.stem for path in (Path(__file__).parent / "predictors").glob("*.py"))
NOT_IN_PROCESS = {
    "fork_bomb",
    "sleeps_past_the_budget",
    "patches_the_clock",
    "asks_the_network",
}
"""They would do harm here, or nothing; they claim a score of 1."""


def arrays(court: Court, name: str) -> dict[str, np.ndarray]:
    """What the cheat has stored."""
    counts = {"counts": court.pair_counts()}
    stored = court.val_tokens
    triples = np.stack([stored[:-2], stored[1:-1], stored[2:]], axis=1)
    key = np.random.default_rng(99).integers(0, 65536, len(stored))
    more: dict[str, Any] = {
        "validation_ngrams": {"grams": np.unique(triples, axis=0)},
        "validation_text_inside": {"stored": stored},
        "validation_text_enciphered": {"hidden": (stored ^ key).astype(np.uint16)},
        "knows_the_order_of_documents": {"hidden": (stored ^ key).astype(np.uint16)},
        "reads_the_validation_file": {
            "path": np.frombuffer(str(court.dataset.val_shards[0]).encode(), np.uint8)
        },
    }
    return counts | more.get(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_the_cheat_is_caught_by_name(court: Court, name: str, tmp_path: Path) -> None:
    source = read_predictor(f"predictors/{name}")
    found = re.search(r"Caught by: ([^.]*)\.", source)
    assert found, f"{name} does not say what catches it"
    folder = court.submit(
        source,
        arrays(court, name),
        out=tmp_path / name,
        claim=1.0 if name in NOT_IN_PROCESS else None,
        kind="adaptive" if name == "learns_before_scoring" else "fixed",
    )
    limit = 3.0 if "evaluation-time" in found[1] else 60.0
    # A bomb of six hundred would hold up all other tests for a minute.
    limits = Limits(num_processes=48) if name == "fork_bomb" else None
    track = dataclasses.replace(court.track, eval_seconds=limit)
    verdict = court.judge(folder, track=track, limits=limits)
    assert verdict.status is not Status.PASS
    assert set(found[1].split(", ")) <= set(failed(verdict)), failed(verdict)
    assert all("\n" not in text for text in failed(verdict).values())


def test_the_honest_base_of_the_cheats_passes(court: Court, tmp_path: Path) -> None:
    verdict = court.judge(court.submit(read_predictor("honest/pair_counts"), out=tmp_path / "h"))
    assert [r for r in verdict.results if r.status is not Status.PASS] == []


@pytest.mark.parametrize("name", ["looks_ahead_by_one", "remembers_earlier_calls"])
def test_what_needs_the_future_or_the_past_of_the_process_cannot_be_proven(
    court: Court, name: str, tmp_path: Path
) -> None:
    folder = court.submit(read_predictor(f"predictors/{name}"), out=tmp_path / name)
    # Early in the text there is little to remember, and 200 tokens can all lie there.
    verdict = court.judge(folder, level="prove", proof_tokens=600)
    assert "proof" in failed(verdict)


def test_an_honest_score_is_proven(court: Court, tmp_path: Path) -> None:
    folder = court.submit(read_predictor("honest/pair_counts"), out=tmp_path / "honest")
    verdict = court.judge(folder, level="prove", proof_tokens=200)
    assert [r for r in verdict.results if r.status is not Status.PASS] == []
    assert "the very bytes" in verdict.results[-1].evidence


@pytest.mark.parametrize("name", ["looks_ahead_by_one", "validation_ngrams", "trains_then_scores"])
def test_cheating_would_pay(court: Court, name: str) -> None:
    """Otherwise catching it shows nothing."""
    from speedrun.bpb import score

    def bpb(source: str, stored: dict[str, np.ndarray]) -> float:
        module: dict[str, Any] = {}
        exec(compile(source, name, "exec"), module)
        found = score(
            module["load"](stored),
            court.val_tokens,
            num_bytes=court.dataset.val_raw_bytes,
            context=64,
            stride=32,
            batch_windows=4,
        )
        return found.bpb

    honest = bpb(read_predictor("honest/pair_counts"), arrays(court, ""))
    assert bpb(read_predictor(f"predictors/{name}"), arrays(court, name)) < 0.97 * honest


def test_training_and_validation_text_differ(court: Court) -> None:
    train = open_shard(court.dataset.train_shards[0])
    assert not np.array_equal(train[:500], court.val_tokens[:500])
