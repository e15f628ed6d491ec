"""Validation documents that stand in the training shards too: the same, or nearly the same.

Equal documents are found by a hash of their tokens. For near ones each document becomes the set of
its runs of tokens (about 20 bytes of text each), and a signature of 96 minima from which 32 keys of
three are made: documents with a key in common are compared run by run. Training shards stream
through, a few hundred thousand tokens at a time; validation signatures stay in memory.

Not found: a validation document inside a much longer training document, and paraphrases.

Source
    MinHash: Broder 1997; bands: Indyk and Motwani 1998. Ours differs: the 96 permutations are XORs
    of one hash with constants, which costs a tenth of as many hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speedrun.data.pool import Pool
from speedrun.data.shards import Tokens, open_shard

NEAR_SIMILARITY = 0.5
"""Runs in common, of all runs of two documents. With 5 % of the words changed it is about 0.65."""
RUN_BYTES = 20
_BANDS, _ROWS = 32, 3
# Found with all but 1 in 10,000 of the seeds at a similarity of 0.6, with 99 % at 0.5.
_PERMUTATIONS = _BANDS * _ROWS
_TOKENS_AT_ONCE = 1 << 18
_DOCUMENTS_AT_ONCE = 1 << 13
_RAW = np.random.PCG64(20).random_raw(_PERMUTATIONS + 64)
_XORS = (_RAW[:_PERMUTATIONS] >> np.uint64(32)).astype(np.uint32)
_FACTORS = _RAW[_PERMUTATIONS:] | np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A validation document and a training document that is like it."""

    validation: int
    """Number of the document in the validation stream."""
    shard: str
    document: int
    """Number of the document in that training shard."""
    similarity: float
    """1.0 if the tokens are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What training and validation have in common."""

    validation_documents: int
    train_documents: int
    train_tokens: int
    pairs: tuple[Pair, ...]

    @property
    def exact(self) -> tuple[int, ...]:
        """Validation documents that are also training documents."""
        return tuple(sorted({pair.validation for pair in self.pairs if pair.similarity == 1}))

    @property
    def near(self) -> tuple[int, ...]:
        """Validation documents that training has with changes only."""
        found = {pair.validation for pair in self.pairs if pair.similarity < 1}
        return tuple(sorted(found - set(self.exact)))


def find_overlap(
    train: Sequence[Path],
    val: Sequence[Path],
    *,
    bos_id: int,
    bytes_per_token: float,
    workers: int = 1,
    progress: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> Overlap:
    """Compare every training document with all of validation.

    Raises
        DataError: a shard is damaged.
    """
    context = Validation(tuple(val), bos_id, run_length(bytes_per_token))
    with Pool(min(workers, len(train)), build_index, context) as pool:
        futures = [pool.submit(_search, path) for path in train]
        found = []
        for done, future in enumerate(futures, start=1):
            found.append(future.result())
            progress("comparing shards", done, len(train))
    return Overlap(
        validation_documents=sum(1 for path in val for _ in documents_of(open_shard(path), bos_id)),
        train_documents=sum(count for _, count, _ in found),
        train_tokens=sum(tokens for _, _, tokens in found),
        pairs=tuple(pair for pairs, _, _ in found for pair in pairs),
    )


def hash_runs(tokens: Tokens, run_tokens: int) -> NDArray[np.uint32]:
    """A hash of each run of so many tokens.

    Shapes
        tokens  (n,)
        result  (max(n - run_tokens + 1, 0),)  uint32
    """
    size = max(tokens.size - run_tokens + 1, 0)
    wide = tokens.astype(np.uint64)
    mixed = np.zeros(size, dtype=np.uint64)
    for place in range(run_tokens):
        mixed += wide[place : place + size] * _FACTORS[place % _FACTORS.size]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return (mixed >> np.uint64(32)).astype(np.uint32)


def similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    """Runs in common, of all runs of two documents, each counted once."""
    first, second = np.unique(one), np.unique(other)
    common = np.intersect1d(first, second, assume_unique=True).size
    return float(common / max(first.size + second.size - common, 1))


def signatures(hashes: NDArray[np.uint32], starts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Minima of each document's hashes under 96 permutations.

    Shapes
        hashes  (n,)          of all documents, one after the other
        starts  (documents,)  where each begins; none is empty
        result  (documents, 96)  uint32
    """
    found = np.empty((_PERMUTATIONS, starts.size), dtype=np.uint32)
    turned = np.empty_like(hashes)
    for index, constant in enumerate(_XORS):
        np.bitwise_xor(hashes, constant, out=turned)
        np.minimum.reduceat(turned, starts, out=found[index])
    return found.T


@dataclass(frozen=True, slots=True)
class Validation:
    """What an index is made of: validation shards, and how long a run is."""

    val: tuple[Path, ...]
    bos_id: int
    run_tokens: int


@dataclass(slots=True)
class Index:
    """All validation documents, by hash of their tokens and by the keys of their signatures."""

    context: Validation
    documents: list[Tokens] = field(default_factory=list)
    by_digest: dict[bytes, int] = field(default_factory=dict)
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    owners: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def build_index(context: Validation) -> Index:
    """Read validation shards into an index.

    Raises
        DataError: a shard is damaged.
    """
    index = Index(context)
    keys, owners = [], []
    for path in context.val:
        for group in in_groups(documents_of(open_shard(path), context.bos_id)):
            first = len(index.documents)
            for number, document in enumerate(group, start=first):
                index.by_digest.setdefault(_digest(document), number)
                index.documents.append(document)
            found, places = _keys(group, context.run_tokens)
            keys.append(found.ravel())
            owners.append(np.repeat(first + places, _BANDS))
    if keys:
        joined, belongs = np.concatenate(keys), np.concatenate(owners)
        order = np.argsort(joined, kind="stable")
        index.keys, index.owners = joined[order], belongs[order]
    return index


def _search(index: Index, path: Path) -> tuple[list[Pair], int, int]:
    """Pairs of one training shard, its documents and its tokens."""
    tokens = open_shard(path)
    pairs: list[Pair] = []
    done = 0
    for group in in_groups(documents_of(tokens, index.context.bos_id)):
        pairs += [
            Pair(validation=owner, shard=path.name, document=done + place, similarity=found)
            for place, owner, found in find_alike(index, group)
        ]
        done += len(group)
    return pairs, done, tokens.size


def find_alike(index: Index, group: list[Tokens]) -> list[tuple[int, int, float]]:
    """Documents (without BOS) that validation has, too: place, validation document, similarity."""
    exact = {}
    for place, document in enumerate(group):
        if (owner := index.by_digest.get(_digest(document))) is not None:
            exact[place] = owner
    near = [each for each in _near(index, group) if exact.get(each[0]) != each[1]]
    return [*((place, owner, 1.0) for place, owner in exact.items()), *near]


def run_length(bytes_per_token: float) -> int:
    """Tokens of a run."""
    return max(round(RUN_BYTES / bytes_per_token), 2)


def _near(index: Index, group: list[Tokens]) -> list[tuple[int, int, float]]:
    """Place in the group, validation document and similarity of all that are near."""
    keys, places = _keys(group, index.context.run_tokens)
    if not index.keys.size or not keys.size:
        return []
    flat = keys.ravel()
    left = np.searchsorted(index.keys, flat, side="left")
    hits = np.flatnonzero(index.keys[np.minimum(left, index.keys.size - 1)] == flat)
    candidates = set()
    for hit in hits.tolist():
        at = int(left[hit])
        while at < index.keys.size and index.keys[at] == flat[hit]:
            candidates.add((int(places[hit // _BANDS]), int(index.owners[at])))
            at += 1
    length = index.context.run_tokens
    found = []
    for place, owner in sorted(candidates):
        # Two sets can be no more alike than the smaller is large; most chance hits end here.
        sizes = sorted((group[place].size, index.documents[owner].size))
        if sizes[0] < NEAR_SIMILARITY * sizes[1] / 2:
            continue
        alike = similarity(
            hash_runs(group[place], length), hash_runs(index.documents[owner], length)
        )
        if alike >= NEAR_SIMILARITY:
            # Runs may all be in common where the documents are not the same.
            found.append((place, owner, min(alike, 0.9999)))
    return found


def _keys(group: list[Tokens], length: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys of each document that has a run at all, and its place in the group.

    Shapes
        keys    (documents, 32)  uint64
        places  (documents,)
    """
    places = np.array([i for i, each in enumerate(group) if each.size >= length], dtype=np.int64)
    if not places.size:
        return np.empty((0, _BANDS), dtype=np.uint64), places
    if places.size == 1:
        marks = _signature_in_pieces(group[int(places[0])], length)
    else:
        hashes = [hash_runs(group[place], length) for place in places.tolist()]
        starts = np.cumsum([0, *(each.size for each in hashes[:-1])])
        marks = signatures(np.concatenate(hashes), starts)
    bands = marks.reshape(places.size, _BANDS, _ROWS).astype(np.uint64)
    # The band's number goes into its key: equal minima in another band mean nothing.
    keys = np.full((places.size, _BANDS), _MIX) * (
        np.arange(_BANDS, dtype=np.uint64) + np.uint64(1)
    )
    for row in range(_ROWS):
        keys = (keys ^ bands[:, :, row]) * _FACTORS[row]
        keys ^= keys >> np.uint64(29)
    return keys, places


def _signature_in_pieces(document: Tokens, length: int) -> NDArray[np.uint32]:
    """The same for one document, however long."""
    found = np.full((1, _PERMUTATIONS), 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, document.size - length + 1, _TOKENS_AT_ONCE):
        hashes = hash_runs(document[start : start + _TOKENS_AT_ONCE + length - 1], length)
        np.minimum(found, signatures(hashes, np.zeros(1, dtype=np.int64)), out=found)
    return found


def in_groups(documents: Iterable[Tokens]) -> Iterator[list[Tokens]]:
    """Documents, some hundred thousand tokens at a time."""
    group: list[Tokens] = []
    size = 0
    for document in documents:
        if group and (size + document.size > _TOKENS_AT_ONCE or len(group) == _DOCUMENTS_AT_ONCE):
            yield group
            group, size = [], 0
        group.append(document)
        size += document.size
    if group:
        yield group


def documents_of(tokens: Tokens, bos_id: int) -> Iterator[Tokens]:
    """Each document without its BOS; a shard may begin inside one."""
    plain = np.asarray(tokens)
    starts = np.flatnonzero(plain == bos_id)
    ends = [*starts.tolist(), plain.size]
    if ends[0]:
        yield plain[: ends[0]]
    for start, end in pairwise(ends):
        yield plain[start + 1 : end]


def _digest(document: Tokens) -> bytes:
    return hashlib.blake2b(document.tobytes(), digest_size=16).digest()
