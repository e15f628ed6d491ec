"""Protects the proof: honest predictors pass it, whoever needs the future for a score does not."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speedrun.bpb import score, windows
from speedrun.config import EvalConfig
from speedrun.data.dataset import open_dataset
from speedrun.errors import CoverageError, DistributionError, PredictorError
from speedrun.verify.one_by_one import OneByOne
from speedrun.verify.proof import RUN_TOKENS, Proof, choose_targets, compare_text, prove
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import Cell

VOCAB = 8
EVALUATION = EvalConfig(context=32, stride=8, batch_windows=4)


class Counts:
    """Honest: how often each token followed the last one, in the window so far."""

    vocab_size, kind = VOCAB, "fixed"

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        rows = []
        for b, row in enumerate(tokens):
            seen = self.learnt()
            for t, token in enumerate(row):
                if t:
                    seen[row[t - 1], token] += 1
                if t >= scored_from[b]:
                    rows.append(self.answer(seen[token], tokens, b, t))
        return np.log(rows).astype(np.float32)

    def learnt(self) -> np.ndarray:
        return np.full((VOCAB, VOCAB), 0.3)

    def answer(self, counts: np.ndarray, tokens: np.ndarray, b: int, t: int) -> np.ndarray:
        return counts / counts.sum()

    def observe(self, tokens: np.ndarray) -> None:
        raise AssertionError("a fixed predictor is never told")


class Learner(Counts):
    """Honest and adaptive: what it has observed counts too."""

    kind = "adaptive"

    def __init__(self) -> None:
        self.counts, self.last = super().learnt(), -1

    def learnt(self) -> np.ndarray:
        return self.counts.copy()

    def observe(self, tokens: np.ndarray) -> None:
        for token in tokens.tolist():
            if self.last >= 0:
                self.counts[self.last, token] += 1
            self.last = token


class LooksAhead(Counts):
    """Uses the next token of the request where there is one."""

    share = 1.0

    def answer(self, counts: np.ndarray, tokens: np.ndarray, b: int, t: int) -> np.ndarray:
        mixed = super().answer(counts, tokens, b, t)
        if t + 1 < tokens.shape[1] and (t * 7919) % 1000 < 1000 * self.share:
            mixed = 0.5 * mixed + 0.5 * (np.arange(VOCAB) == tokens[b, t + 1])
        return mixed


class LooksAheadSeldom(LooksAhead):
    share = 0.05


class LooksAcross(Counts):
    """Finds its place in the other windows of the same call, which go further."""

    def answer(self, counts: np.ndarray, tokens: np.ndarray, b: int, t: int) -> np.ndarray:
        mixed = super().answer(counts, tokens, b, t)
        past = tokens[b, max(0, t - 7) : t + 1].tolist()
        for other in tokens.tolist()[b + 1 :]:
            for place in range(len(past), len(other)):
                if other[place - len(past) : place] == past:
                    return 0.5 * mixed + 0.5 * (np.arange(VOCAB) == other[place])
        return mixed


class Remembers(Counts):
    """Looks up what followed in anything that it was ever shown."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, ...], int] = {}

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        for row in tokens.tolist():
            for t in range(10, len(row)):
                self.seen[tuple(row[t - 10 : t])] = row[t]
        return super().predict(tokens, scored_from)

    def answer(self, counts: np.ndarray, tokens: np.ndarray, b: int, t: int) -> np.ndarray:
        mixed = super().answer(counts, tokens, b, t)
        known = self.seen.get(tuple(tokens[b, max(0, t - 9) : t + 1].tolist()), -1)
        return 0.5 * mixed + 0.5 * (np.arange(VOCAB) == known) if known >= 0 else mixed


class Unsteady(Counts):
    """No two processes answer the same."""

    processes = itertools.count()

    def __init__(self) -> None:
        self.rng = np.random.default_rng(next(self.processes))

    def answer(self, counts: np.ndarray, tokens: np.ndarray, b: int, t: int) -> np.ndarray:
        return super().answer(counts, tokens, b, t) * self.rng.uniform(0.99, 1.01, VOCAB)


@pytest.fixture(name="tokens", scope="module")
def tokens_fixture() -> np.ndarray:
    rng = np.random.default_rng(5)
    step = rng.choice(VOCAB, size=1_101, p=[0.5, 0.2, 0.1, 0.1, 0.025, 0.025, 0.025, 0.025])
    return (np.cumsum(step) % VOCAB).astype(np.uint16)


def scored(predictor: Any, tokens: np.ndarray) -> np.ndarray:
    nats = np.full(len(tokens) - 1, np.nan, dtype=np.float32)
    score(predictor, tokens, num_bytes=1, keep=nats, **dataclasses.asdict(EVALUATION))
    return nats


def proven(
    make: Callable[[], Any], tokens: np.ndarray, nats: np.ndarray | None = None,
    *, num_tokens: int | None = 300, seed: int = 1, **options: Any,
) -> Proof:  # fmt: skip
    return prove(
        lambda: contextlib.nullcontext(make()),
        tokens,
        scored(make(), tokens) if nats is None else nats,
        evaluation=EVALUATION,
        num_tokens=num_tokens,
        rng=np.random.default_rng(seed),
        **options,
    )


@pytest.mark.parametrize("make", [Counts, Learner])
@pytest.mark.parametrize("num_tokens", [1, 300, None])
def test_an_honest_predictor_is_proven(make, num_tokens, tokens):
    told: list[tuple[int, int]] = []
    proof = proven(make, tokens, num_tokens=num_tokens, progress=lambda *pair: told.append(pair))
    count = num_tokens or 1_100
    assert proof.holds and proof.is_decoded and proof.first_wrong is None
    assert proof.num_tokens == count == sum(length for _, length in proof.runs)
    assert proof.is_complete == (num_tokens is None) and proof.kind == make.kind
    assert proof.coded_bits == pytest.approx(proof.claimed_bits, rel=1e-5, abs=8)
    assert abs(proof.worst_bits) < 1e-4
    assert told == [(done + 1, 2 * count) for done in range(2 * count)]


def test_parts_side_by_side_code_what_one_codes(tokens):
    one, two = (proven(Counts, tokens, side_by_side=count) for count in (1, 2))
    assert two.holds and two.num_codes == 2 and two.runs == one.runs
    assert (two.claimed_bits, two.worst_target) == (one.claimed_bits, one.worst_target)
    assert 0 <= two.coded_bits - one.coded_bits <= 8 and two.limit_bits == one.limit_bits + 8


def test_the_claim_is_that_of_the_coded_tokens(tokens):
    nats = scored(Counts(), tokens)
    proof = proven(Counts, tokens, nats)
    places = np.concatenate([np.arange(first, first + length) for first, length in proof.runs])
    assert len(places) == 300 and len(proof.runs) < 8
    assert proof.claimed_bits == pytest.approx(nats[places].sum() / math.log(2), rel=1e-6)


@pytest.mark.parametrize("make", [LooksAhead, LooksAheadSeldom, LooksAcross])
def test_a_predictor_that_needs_the_future_is_not_proven(make, tokens):
    claimed = proven(make, tokens, num_tokens=None)
    assert claimed.is_decoded and not claimed.holds  # its answers to honest questions are steady
    assert claimed.coded_bits > claimed.limit_bits and claimed.ratio > 1.001
    assert claimed.worst_bits > 0.5


def test_memory_of_other_requests_does_not_help(tokens):
    """Scored twice, it knows the text; in the order of the text nothing was shown that is ahead."""
    second_pass = Remembers()
    scored(second_pass, tokens)
    proof = proven(Remembers, tokens, scored(second_pass, tokens), num_tokens=600)
    assert proof.is_decoded and not proof.holds and proof.ratio > 1.5


def test_a_predictor_that_differs_between_processes_is_not_decoded(tokens):
    proof = proven(Unsteady, tokens)
    assert not proof.is_decoded and not proof.holds
    assert proof.first_wrong is not None and proof.coded_bits < proof.limit_bits * 1.01


def test_a_claim_below_what_the_tokens_cost_is_not_proven(tokens):
    nats = scored(Counts(), tokens)
    assert not proven(Counts, tokens, 0.995 * nats, num_tokens=None).holds
    one_lucky = nats.copy()
    one_lucky[77] = 0.0
    proof = proven(Counts, tokens, one_lucky, num_tokens=None)
    assert (proof.worst_target, proof.worst_bits) == (77, pytest.approx(nats[77] / math.log(2)))


class Spy(Counts):
    """Writes down what it is asked and told."""

    def __init__(self, kind: str) -> None:
        self.kind, self.told = kind, []

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        self.told.append(("predict", tokens.tolist(), scored_from.tolist()))
        asked = int((tokens.shape[1] - scored_from).sum())
        return np.zeros((asked, VOCAB), np.float32)

    def observe(self, tokens: np.ndarray) -> None:
        self.told.append(("observe", tokens.tolist()))


def test_a_request_ends_at_its_position_and_starts_where_scoring_starts(tokens):
    spies: list[Spy] = []

    def make() -> Spy:
        spies.append(Spy("fixed"))
        return spies[-1]

    nats = np.full(1_100, math.log(VOCAB))
    proof = proven(make, tokens, nats, num_tokens=None)
    assert proof.holds and proof.ratio == pytest.approx(1, abs=0.01)
    start_of = {
        place: start
        for start, stop, scored in windows(len(tokens), 32, 8).tolist()
        for place in range(start + scored, stop)
    }
    for spy in spies:
        assert [what for _, what, _ in spy.told] == [
            [tokens[start_of[place] : place + 1].tolist()] for place in range(1_100)
        ]
        assert all(asked == [len(rows[0]) - 1] for _, rows, asked in spy.told)


def test_an_adaptive_predictor_passes_the_text_as_in_scoring(tokens):
    scoring, proving = Spy("adaptive"), Spy("adaptive")
    scored(scoring, tokens)
    shown = OneByOne(proving, tokens[None], context=32, stride=8)
    for place in (5, 40, 41, 1_099):
        shown.at(place)
    questions = [
        ("predict", [tokens[start : place + 1].tolist()], [24 * (start > 0)])
        for start, place in ((0, 5), (16, 40), (16, 41), (1_072, 1_099))
    ]
    between = [call for call in proving.told if call not in questions]
    assert len(proving.told) == len(between) + len(questions)
    assert between == scoring.told[:-2]  # what follows the last window is told to nobody


def test_the_decoder_is_shown_what_it_decoded_and_not_the_text(tokens):
    """A decoder that is fed the truth would hide that it found something else."""
    seen: list[list[list[int]]] = []

    class Turns(Counts):
        def __init__(self) -> None:
            seen.append([])

        def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
            seen[-1].append(tokens.tolist()[0])
            answer = super().predict(tokens, scored_from)
            # From the third request on the second process has other logits.
            return answer[:, ::-1] if len(seen) == 2 and len(seen[1]) >= 3 else answer

    nats = scored(Counts(), tokens)
    proof = proven(Turns, tokens, nats, num_tokens=None)
    assert not proof.is_decoded and proof.first_wrong is not None and proof.first_wrong < 10
    assert len(seen[1]) == proof.first_wrong + 1


class Broken(Counts):
    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        return self.logits


@pytest.mark.parametrize(
    ("logits", "error"),
    [
        (np.zeros((2, VOCAB)), CoverageError),
        (np.zeros((1, VOCAB - 1)), CoverageError),
        (np.full((1, VOCAB), np.nan), DistributionError),
    ],
)
def test_a_broken_answer_is_named(logits, error, tokens):
    with pytest.raises(error):
        proven(lambda: Broken(logits), tokens, np.zeros(1_100))


def test_a_foreign_vocabulary_is_named(tokens):
    with pytest.raises(PredictorError, match="made for another tokenizer"):
        proven(Counts, tokens + np.uint16(1), np.zeros(1_100))


def test_a_predictor_that_changes_its_kind_is_named(tokens):
    makes = iter((Counts, Learner))
    with pytest.raises(PredictorError, match="was fixed at first and is adaptive now"):
        proven(lambda: next(makes)(), tokens, np.zeros(1_100))


def test_places_are_runs_and_every_target_has_its_turn():
    rng, hits = np.random.default_rng(3), np.zeros(1_000)
    for _ in range(400):
        places = choose_targets(1_000, 250, rng)
        assert len(places) == 250 and (np.diff(places) > 0).all()
        assert (np.diff(places) > 1).sum() <= 250 // RUN_TOKENS + 2
        hits[places] += 1
    assert hits.min() > 50 and hits.max() < 180
    assert choose_targets(9, 50, rng).tolist() == list(range(9))


def test_a_submission_in_its_cell_is_proven(bench: Any):
    folder, tokens = bench.submit(), bench.text.tokens

    @contextlib.contextmanager
    def start() -> Any:
        with Cell(folder) as cell:
            arguments = ["train_gpt.py", "predict", "model.srz"]
            with RemotePredictor(cell, arguments, budget_s=60.0) as predictor:
                yield predictor

    with start() as predictor:
        nats = scored(predictor, tokens)
    proof = prove(
        start, tokens, nats, evaluation=EVALUATION, num_tokens=500, rng=np.random.default_rng(2)
    )
    assert proof.holds and proof.num_tokens == 500


def test_decoded_tokens_spell_the_raw_text(contest: Any):
    dataset = open_dataset(contest.data)
    tokens = dataset.val_tokens()

    class Uniform(Spy):
        vocab_size = dataset.vocab_size

        def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
            return np.zeros((int((tokens.shape[1] - scored_from).sum()), self.vocab_size), "f4")

    nats = np.full(len(tokens) - 1, math.log(dataset.vocab_size))
    proof = proven(lambda: Uniform("fixed"), tokens, nats, num_tokens=None)
    found = compare_text(dataset, proof)
    assert (found.num_documents, found.differs, found.is_raw_text) == (8, "", True)
    assert found.num_bytes == dataset.val_raw_bytes

    some = dataclasses.replace(proof, runs=((0, 1), (len(tokens) - 2, 1)))
    assert compare_text(dataset, some).num_documents == 2

    assert dataset.manifest is not None
    lossy = dataclasses.replace(dataset.manifest, lossless=False)
    found = compare_text(dataclasses.replace(dataset, manifest=lossy), proof)
    assert not found.is_raw_text and found.num_bytes == dataset.val_raw_bytes


def test_another_raw_text_is_named(contest: Any, tmp_path: Path):
    dataset = open_dataset(contest.data)
    assert dataset.manifest is not None
    raw = next(shard.raw for shard in dataset.manifest.shards if shard.raw)
    for path in contest.data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = bytearray((tmp_path / raw.file).read_bytes())
    text[raw.document_bytes[0] + 3] ^= 1
    (tmp_path / raw.file).write_bytes(bytes(text))
    tokens = dataset.val_tokens()
    starts = np.flatnonzero(tokens == dataset.bos_id)
    proof = Proof(
        num_tokens=2, runs=((0, 1), (int(starts[1]), 1)), is_complete=False, kind="fixed",
        claimed_bits=1.0, coded_bits=1, worst_target=0, worst_bits=0.0, is_decoded=True,
        first_wrong=None, seconds=0.0,
    )  # fmt: skip
    found = compare_text(dataclasses.replace(dataset, folder=tmp_path), proof)
    assert found.differs == raw.document_ids[1]
