"""Proof of a score: the text is coded token by token, and a fresh process decodes it.

Scoring shows a predictor whole windows and trusts it not to look ahead in them. Here nothing after
a position is in any request until its token is coded, so the length of the code is what the
predictor knows from the past alone, and the decoder shows that nothing else went into it. If the
code is no longer than the nats that scoring counted for the same tokens, these nats are real.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speedrun.config import EvalConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import FormatError, PredictorError
from speedrun.predict import Predictor
from speedrun.verify.coding import Decoder, Encoder
from speedrun.verify.one_by_one import OneByOne

TOLERANCE = 0.001
"""How much longer than claimed a code may be: the same logits, computed in another shape, differ
in their last digits."""
END_BITS = 8
"""A code ends with a whole byte. All runs of a part share one code, so it has one end."""
RUN_TOKENS = 100
"""Consecutive tokens at each place of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was coded, what it took, and whether it came back."""

    num_tokens: int
    runs: tuple[tuple[int, int], ...]
    """First target and number of targets of each run; target i is token i + 1 of the stream."""
    is_complete: bool
    """Every target of the stream was coded."""
    kind: Literal["fixed", "adaptive"]
    """What the predictor says that it is; it must not change between scoring and this."""
    claimed_bits: float
    """Of these tokens, by the nats of scoring."""
    coded_bits: int
    """Length of the codes."""
    num_codes: int = 1
    worst_target: int
    worst_bits: float
    """The token whose cost is furthest from its claim, and by how much it is dearer (or, below
    zero, cheaper)."""
    is_decoded: bool
    """A fresh process, given the code, found every token."""
    first_wrong: int | None
    """The first target that it did not find."""
    seconds: float

    @property
    def limit_bits(self) -> float:
        """The longest code that supports the claim."""
        return self.claimed_bits * (1 + TOLERANCE) + END_BITS * self.num_codes

    @property
    def ratio(self) -> float:
        """Coded over claimed bits."""
        return self.coded_bits / self.claimed_bits if self.claimed_bits else math.inf

    @property
    def holds(self) -> bool:
        """The tokens came back from a code that is as short as claimed."""
        return self.is_decoded and self.coded_bits <= self.limit_bits


def prove(
    start: Callable[[], AbstractContextManager[Predictor]],
    tokens: np.ndarray,
    nats: np.ndarray,
    *,
    evaluation: EvalConfig,
    num_tokens: int | None,
    rng: np.random.Generator,
    side_by_side: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Code tokens at random places with one predictor process and decode them with another.

    Requests have one row and ask for its last position. They come in the order of the text, so
    that what a process has seen so far never holds a token that it is still to predict. An adaptive
    predictor passes the text before each place as in scoring, which takes as long as scoring does.

    Args:
        start: Starts a process that nobody has asked anything, in a cell that no other process of
            the submission has written to: one that was scored may have left the text there.
            Called twice for each part.
        tokens: The stream that was scored.
        nats: What scoring counted for each target.
        evaluation: The windows of scoring.
        num_tokens: How many targets to code, in runs of `RUN_TOKENS`; None codes all.
        rng: Draws the places. Who is judged must not know it.
        side_by_side: Parts of the text that are coded at the same time, each with processes of its
            own, which see no token of a later part. An adaptive predictor passes the text before
            in each part, so that more than one gains nothing.
        progress: Called with (requests done, requests in all).

    Shapes
        tokens  (n,)     integers
        nats    (n - 1,) floats; target i is tokens[i + 1]

    Raises
        PredictorError: a process did not answer as it should; see `bpb.score`.
    """
    assert nats.shape == (len(tokens) - 1,) and np.isfinite(nats).all()
    assert num_tokens is None or num_tokens > 0
    began, places = time.perf_counter(), choose_targets(len(nats), num_tokens, rng)
    done = itertools.count(1)

    def tell() -> None:
        if progress is not None:
            progress(next(done), 2 * len(places))

    def code(part: NDArray[np.int64]) -> _Coded:
        return _code(start, tokens, part, evaluation, tell)

    with ThreadPoolExecutor(side_by_side) as pool:
        parts = list(pool.map(code, np.array_split(places, min(side_by_side, len(places)))))
    kinds = {part.kind for part in parts}
    if len(kinds) > 1:
        raise PredictorError("the predictor is fixed in one process and adaptive in another")
    costs = np.concatenate([part.costs for part in parts])
    wrong = [part.first_wrong for part in parts if part.first_wrong is not None]
    claims = nats[places] / math.log(2)
    worst = int(np.abs(costs - claims).argmax())
    return Proof(
        num_tokens=len(places),
        runs=_runs(places),
        is_complete=len(places) == len(nats),
        kind=kinds.pop(),
        claimed_bits=float(claims.sum()),
        coded_bits=sum(part.num_bits for part in parts),
        num_codes=len(parts),
        worst_target=int(places[worst]),
        worst_bits=float(costs[worst] - claims[worst]),
        is_decoded=not wrong,
        first_wrong=min(wrong, default=None),
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coded:
    """One part of the text, coded and decoded."""

    kind: Literal["fixed", "adaptive"]
    costs: NDArray[np.float64]
    """Bits of each token."""
    num_bits: int
    first_wrong: int | None


def _code(
    start: Callable[[], AbstractContextManager[Predictor]],
    tokens: np.ndarray,
    places: NDArray[np.int64],
    evaluation: EvalConfig,
    tell: Callable[[], None],
) -> _Coded:
    """Code the targets at `places` with one process, decode them with another."""
    windows = {"context": evaluation.context, "stride": evaluation.stride}
    encoder, costs = Encoder(), np.zeros(len(places))
    with start() as predictor:
        if int(tokens.max()) >= predictor.vocab_size:
            raise PredictorError(
                f"the text has token {int(tokens.max()):,}, the predictor's vocabulary ends at "
                f"{predictor.vocab_size - 1:,}; it was made for another tokenizer"
            )
        kind = predictor.kind
        shown = OneByOne(predictor, tokens[None], **windows)
        for number, place in enumerate(places.tolist()):
            costs[number] = encoder.put(int(tokens[place + 1]), shown.at(place)[0])
            tell()
    code = encoder.finish()
    # The decoder's own copy, from which all that it is to find has been taken out.
    found = tokens.copy()
    found[places + 1] = 0
    decoder, first_wrong = Decoder(code), None
    with start() as predictor:
        if predictor.kind != kind:
            raise PredictorError(f"the predictor was {kind} at first and is {predictor.kind} now")
        shown = OneByOne(predictor, found[None], **windows)
        for place in places.tolist():
            try:
                found[place + 1] = decoder.take(shown.at(place)[0])
            except FormatError:
                first_wrong = place
            if found[place + 1] != tokens[place + 1]:
                first_wrong = place
            if first_wrong is not None:
                break
            tell()
    return _Coded(kind=kind, costs=costs, num_bits=8 * len(code), first_wrong=first_wrong)


def choose_targets(
    num_targets: int, num_wanted: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rising numbers of the targets to code: random runs that do not overlap.

    The stream is cut at a random phase, and pieces are drawn: every target is as likely as any
    other, but for those near both ends.
    """
    if num_wanted is None or num_wanted >= num_targets:
        return np.arange(num_targets)
    phase = int(rng.integers(RUN_TOKENS))
    cuts = np.arange(phase, num_targets, RUN_TOKENS)
    pieces = np.split(np.arange(num_targets), cuts)
    order = rng.permutation(len(pieces))
    drawn = np.concatenate([pieces[number] for number in order])
    return np.sort(drawn[:num_wanted])


def _runs(places: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """(first, length) of each row of consecutive numbers."""
    pieces = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    return tuple((int(piece[0]), len(piece)) for piece in pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextComparison:
    """What decoded tokens are as text, beside the text that they were made from."""

    num_documents: int
    """Documents that hold a coded token."""
    num_bytes: int
    """Bytes of these documents as the tokens spell them."""
    is_raw_text: bool
    """They were compared with the original bytes. A lossy tokenizer cannot give these back; then
    no more is known than that the tokens are the same, so they spell the same text."""
    differs: str
    """Name of the first document whose tokens spell another text, or nothing."""


def compare_text(dataset: Dataset, proof: Proof) -> TextComparison:
    """Spell the documents that a proof's tokens lie in, and compare them with the raw text.

    To be asked for a proof that was decoded: its tokens are then those of the stream.

    Raises
        DataError, TokenizerError: shards, raw text or tokenizer are not there.
    """
    assert proof.is_decoded
    stream, tokenizer = dataset.val_tokens(), dataset.tokenizer()
    starts = np.flatnonzero(stream == dataset.bos_id)
    coded = np.concatenate([np.arange(first, first + count) + 1 for first, count in proof.runs])
    touched = np.unique(np.searchsorted(starts, coded, side="right") - 1)
    ends = np.append(starts[1:], len(stream))
    raw = _RawDocuments(dataset) if dataset.manifest and dataset.manifest.lossless else None
    num_bytes, differs = 0, ""
    for number in touched.tolist():
        ids = stream[starts[number] + 1 : ends[number]]
        spelled = tokenizer.decode(ids.tolist()).encode()
        num_bytes += len(spelled)
        if raw is not None and not differs and spelled != raw.text(number):
            differs = raw.names[number]
    return TextComparison(
        num_documents=len(touched),
        num_bytes=num_bytes,
        is_raw_text=raw is not None,
        differs=differs,
    )


class _RawDocuments:
    """The original validation documents, by number."""

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.manifest is not None
        shards = sorted(dataset.manifest.shards, key=lambda shard: shard.file)
        entries = [shard.raw for shard in shards if shard.raw is not None]
        self.names = [name for entry in entries for name in entry.document_ids]
        self._places: list[tuple[Path, int, int]] = []
        for entry in entries:
            stops = np.cumsum(entry.document_bytes).tolist()
            for stop, size in zip(stops, entry.document_bytes, strict=True):
                self._places.append((dataset.folder / entry.file, stop - size, size))

    def text(self, number: int) -> bytes:
        path, start, size = self._places[number]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
