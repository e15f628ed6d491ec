"""Protects the number we compete on: every target once, our own softmax, raw bytes below."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speedrun.bpb import score, token_nats, windows
from speedrun.errors import DataError, PredictorError


class Bigram:
    """Logits depend on the last token alone, so windows and batches must not matter."""

    def __init__(self, vocab_size: int = 7, kind: str = "fixed") -> None:
        self.vocab_size, self.kind = vocab_size, kind
        table = np.random.default_rng(1).normal(size=(vocab_size, vocab_size))
        self.table = table.astype(np.float32)
        self.calls: list[tuple[str, np.ndarray]] = []

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        self.calls.append(("predict", tokens[asked]))
        return self.table[tokens[asked]]

    def observe(self, tokens: np.ndarray) -> None:
        self.calls.append(("observe", tokens))

    def nats(self, tokens: np.ndarray) -> float:
        """The slow, obvious version: a Python loop in double precision."""
        total = 0.0
        for before, target in itertools.pairwise(tokens):
            row = self.table[before].astype(np.float64)
            total += math.log(sum(math.exp(x) for x in row)) - row[target]
        return total


def text(num_tokens: int, vocab_size: int = 7) -> np.ndarray:
    return np.random.default_rng(2).integers(0, vocab_size, num_tokens).astype(np.uint16)


@given(st.integers(2, 300), st.integers(1, 40), st.data())
def test_every_target_is_scored_once_and_in_order(
    num_tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    table = windows(num_tokens, context, stride)
    scored = [p for start, stop, first in table for p in range(start + first, stop)]
    assert scored == list(range(num_tokens - 1))
    assert all(stop - start == context for start, stop, _ in table[:-1])
    assert all(first >= context - stride for start, _, first in table if start)


def test_windows_of_the_reference_example() -> None:
    # 10 targets, context 4, stride 2, written out by hand.
    assert windows(11, 4, 2).tolist() == [[0, 4, 0], [2, 6, 2], [4, 8, 2], [6, 10, 2]]
    assert windows(12, 4, 2).tolist()[-1] == [8, 11, 2]
    assert windows(3, 64, 8).tolist() == [[0, 2, 0]]


@pytest.mark.parametrize(("num_tokens", "context", "stride"), [(1, 4, 2), (9, 4, 5), (9, 4, 0)])
def test_windows_refuse_what_cannot_be_scored(num_tokens: int, context: int, stride: int) -> None:
    with pytest.raises(DataError):
        windows(num_tokens, context, stride)


@given(st.integers(2, 120), st.integers(1, 30), st.integers(1, 5), st.data())
def test_score_agrees_with_a_python_loop(
    num_tokens: int, context: int, batch: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    predictor, tokens = Bigram(), text(num_tokens)
    result = score(
        predictor, tokens, num_bytes=50, context=context, stride=stride, batch_windows=batch
    )
    assert result.num_tokens == num_tokens - 1
    assert result.nats == pytest.approx(predictor.nats(tokens), rel=1e-6)
    assert result.bpb == pytest.approx(result.nats / math.log(2) / 50)
    assert result.nats_per_token == pytest.approx(result.nats / (num_tokens - 1))


def test_uniform_logits_cost_the_logarithm_of_the_alphabet() -> None:
    predictor = Bigram(8)
    predictor.table[:] = 3.0
    result = score(predictor, text(100), num_bytes=99, context=8, stride=4, batch_windows=3)
    assert result.bpb == pytest.approx(3.0)


def test_parts_of_a_score_add_up() -> None:
    tokens, predictor = text(203), Bigram()
    parts = [
        score(
            predictor,
            tokens,
            num_bytes=1,
            context=16,
            stride=4,
            batch_windows=5,
            part=(rank, 60),
        )
        for rank in range(60)
    ]
    assert sum(part.num_tokens for part in parts) == 202
    assert sum(part.nats for part in parts) == pytest.approx(predictor.nats(tokens), rel=1e-6)


def test_an_adaptive_predictor_observes_each_token_once_and_only_after_its_score() -> None:
    predictor, tokens, seen = Bigram(kind="adaptive"), text(100), 0
    score(predictor, tokens, num_bytes=1, context=16, stride=4, batch_windows=3)
    for what, values in predictor.calls:
        if what == "observe":
            assert values.tolist() == tokens[seen : seen + len(values)].tolist()
            seen += len(values)
        else:
            assert values[0] == tokens[max(seen - 1, 0)]
    assert seen == len(tokens)


def test_a_fixed_predictor_is_never_told() -> None:
    predictor = Bigram()
    score(predictor, text(40), num_bytes=1, context=8, stride=8, batch_windows=2)
    assert {what for what, _ in predictor.calls} == {"predict"}


def test_token_nats_leave_the_logits_alone_and_survive_large_ones() -> None:
    logits = np.array([[1e4, 1e4 - 1.0, -1e4]], np.float32)
    before = logits.copy()
    assert float(token_nats(logits, np.array([1]))[0]) == pytest.approx(math.log(1 + math.e))
    assert (logits == before).all()


def test_many_small_terms_beside_a_large_one_are_not_lost() -> None:
    # Each term is half a float32 step of the first: a float32 sum would return 1 exactly.
    logits = np.full((1, 60_001), math.log(5.9e-8), np.float32)
    logits[0, 0] = 0.0
    assert float(token_nats(logits, np.array([0]))[0]) == pytest.approx(60_000 * 5.9e-8, rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_logit_among_many_is_refused(bad: float) -> None:
    logits = torch.zeros(3000, 1000)
    logits[2345, 678] = bad
    with pytest.raises(PredictorError, match="finite"):
        token_nats(logits, np.zeros(3000, np.int64))


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    predictor = Bigram()
    predictor.predict = lambda tokens, scored_from: np.zeros((3, 7), np.float32)  # type: ignore[method-assign]
    with pytest.raises(PredictorError, match=r"\(3, 7\).*\(8, 7\)"):
        score(predictor, text(9), num_bytes=1, context=8, stride=8, batch_windows=1)


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(PredictorError, match=r"token 6.*ends at 4"):
        score(Bigram(5), text(100), num_bytes=1, context=8, stride=8, batch_windows=1)


def test_progress_arrives_at_the_number_of_targets() -> None:
    seen: list[tuple[int, int]] = []
    score(
        Bigram(),
        text(100),
        num_bytes=1,
        context=16,
        stride=4,
        batch_windows=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (99, 99)
    assert seen == sorted(seen)
