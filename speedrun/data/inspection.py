"""Look into a dataset: its documents as text, how long they are, and which tokens are frequent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedrun.data.shards import Tokens, open_shard
from speedrun.data.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 1 << 22
QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of the documents of some shards."""

    documents: int
    tokens: int
    quantiles: dict[str, int]
    """`min`, `10 %`, `median` and so on."""
    histogram: tuple[tuple[int, int], ...]
    """Powers of two, and how many documents are shorter than that but not than the one before."""


def measure_lengths(shards: Sequence[Path], bos_id: int) -> Lengths:
    """Lengths of all documents, BOS included; a shard is read once, some MB at a time.

    Raises
        DataError: a shard is damaged.
    """
    sizes = [_document_sizes(open_shard(path), bos_id) for path in shards]
    joined = np.concatenate(sizes) if sizes else np.empty(0, dtype=np.int64)
    if not joined.size:
        return Lengths(documents=0, tokens=0, quantiles={}, histogram=())
    names = {0.0: "min", 0.5: "median", 1.0: "max"}
    found = np.quantile(joined, QUANTILES, method="nearest").tolist()
    bits = np.ceil(np.log2(joined + 1)).astype(np.int64)
    counts = np.bincount(bits)
    first = int(np.flatnonzero(counts)[0])
    return Lengths(
        documents=int(joined.size),
        tokens=int(joined.sum()),
        quantiles={
            names.get(share, f"{100 * share:g} %"): int(size)
            for share, size in zip(QUANTILES, found, strict=True)
        },
        histogram=tuple((1 << bit, int(counts[bit])) for bit in range(first, counts.size)),
    )


def read_documents(
    shards: Sequence[Path], tokenizer: Tokenizer, *, first: int, count: int
) -> Iterator[tuple[int, Tokens, str]]:
    """Number, tokens and text of documents `first` to `first + count` of some shards.

    Raises
        DataError: a shard is damaged.
    """
    number = 0
    for path in shards:
        tokens = open_shard(path)
        starts = np.flatnonzero(np.asarray(tokens) == tokenizer.bos_id)
        ends = np.append(starts[1:], tokens.size)
        for place in range(max(first - number, 0), min(first + count - number, starts.size)):
            document = np.asarray(tokens[starts[place] : ends[place]])
            yield number + place, document, tokenizer.decode(document[1:].tolist())
        number += starts.size
        if number >= first + count:
            return


def frequent_tokens(
    shards: Sequence[Path], tokenizer: Tokenizer, *, count: int
) -> list[tuple[int, str, float]]:
    """The most frequent ids of some shards, their text, and their share of all tokens.

    Raises
        DataError: a shard is damaged.
    """
    counts = np.zeros(65_536, dtype=np.int64)
    for path in shards:
        tokens = open_shard(path)
        for start in range(0, tokens.size, _TOKENS_AT_ONCE):
            counts += np.bincount(tokens[start : start + _TOKENS_AT_ONCE], minlength=counts.size)
    order = np.argsort(-counts, kind="stable")[:count].tolist()
    total = max(int(counts.sum()), 1)
    return [
        (token, tokenizer.decode([token]), float(counts[token] / total))
        for token in order
        if counts[token]
    ]


def _document_sizes(tokens: Tokens, bos_id: int) -> NDArray[Any]:
    starts = [
        start + np.flatnonzero(np.asarray(tokens[start : start + _TOKENS_AT_ONCE]) == bos_id)
        for start in range(0, tokens.size, _TOKENS_AT_ONCE)
    ]
    joined = np.concatenate([*starts, [tokens.size]]) if starts else np.array([0])
    # What stands before the first BOS is the end of a document that began in an earlier shard.
    return np.diff(joined)
