"""Cheats with numbers: honest predictors whose claimed score comes from counting wrongly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from speedrun.bpb import score
from tests.cheats.conftest import Court, failed, read_predictor

HONEST = read_predictor("honest/pair_counts")


@pytest.fixture(scope="module", name="nats")
def nats_fixture(court: Court) -> np.ndarray:
    """What each target really costs."""
    module: dict[str, object] = {}
    exec(compile(HONEST, "honest", "exec"), module)
    kept = np.empty(len(court.val_tokens) - 1)
    score(
        module["load"]({"counts": court.pair_counts()}),  # type: ignore[operator]
        court.val_tokens,
        num_bytes=1,
        context=64,
        stride=32,
        batch_windows=4,
        keep=kept,
    )
    return kept


def said(court: Court, tmp_path: Path, claim: float, source: str = HONEST) -> str:
    """What the judge says about a claim that is too good."""
    folder = court.submit(source, out=tmp_path / "submission", claim=claim)
    found = failed(court.judge(folder, level="score"))
    assert set(found) == {"metric"}
    return found["metric"]


def piece_counts(court: Court, text: str) -> int:
    """Targets whose piece starts with a text when it is decoded alone."""
    tokenizer = court.dataset.tokenizer()
    return sum(
        tokenizer.decode([token]).startswith(text) for token in court.val_tokens[1:].tolist()
    )


def bpb(nats: np.ndarray, num_bytes: float) -> float:
    return float(nats.sum()) / math.log(2) / num_bytes


def test_a_byte_table_with_one_more_for_each_space(
    court: Court, nats: np.ndarray, tmp_path: Path
) -> None:
    wrong = court.dataset.val_raw_bytes + piece_counts(court, " ")
    assert "counted twice" in said(court, tmp_path, bpb(nats, wrong))


def test_byte_pieces_counted_as_three(court: Court, nats: np.ndarray, tmp_path: Path) -> None:
    wrong = court.dataset.val_raw_bytes + 2 * piece_counts(court, "\ufffd")
    assert wrong > court.dataset.val_raw_bytes
    assert "three bytes of U+FFFD" in said(court, tmp_path, bpb(nats, wrong))


def test_sentinels_counted_as_text(court: Court, nats: np.ndarray, tmp_path: Path) -> None:
    documents = int((court.val_tokens == court.dataset.bos_id).sum())
    wrong = court.dataset.val_raw_bytes + 3 * documents
    assert "sentinels are counted as text" in said(court, tmp_path, bpb(nats, wrong))


def test_a_score_of_a_subset(court: Court, nats: np.ndarray, tmp_path: Path) -> None:
    half = nats[: len(nats) // 2]
    assert "measured minus claimed" in said(court, tmp_path, bpb(half, court.dataset.val_raw_bytes))


def test_hard_positions_left_out_of_the_sum(court: Court, nats: np.ndarray, tmp_path: Path) -> None:
    kept = nats[nats < np.quantile(nats, 0.9)]
    said(court, tmp_path, bpb(kept, court.dataset.val_raw_bytes))


def test_the_last_window_left_out_of_the_sum(
    court: Court, nats: np.ndarray, tmp_path: Path
) -> None:
    said(court, tmp_path, bpb(nats[:-40], court.dataset.val_raw_bytes))


def test_the_better_of_two_passes_over_the_text(
    court: Court, nats: np.ndarray, tmp_path: Path
) -> None:
    uniform = math.log(court.dataset.vocab_size)
    said(court, tmp_path, bpb(np.minimum(nats, uniform), court.dataset.val_raw_bytes))


def test_a_mixture_that_is_not_normalised(court: Court, nats: np.ndarray, tmp_path: Path) -> None:
    """A cache adds probability to the token that came, and takes it from nobody."""
    mixed = -np.log(0.9 * np.exp(-nats) + 0.1)
    said(court, tmp_path, bpb(mixed, court.dataset.val_raw_bytes))


def test_the_score_of_another_artifact(court: Court, nats: np.ndarray, tmp_path: Path) -> None:
    worse = HONEST.replace("counts + 0.5", "counts + 40.0")
    said(court, tmp_path, bpb(nats, court.dataset.val_raw_bytes), worse)
