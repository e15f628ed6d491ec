"""Fit an `ngram.NgramTable` to a text: count, keep the n-grams that pay, write them as streams."""

# V alphabet, n length of an n-gram; a key is its tokens as digits of base V, the last one lowest

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedrun.config import CountConfig
from speedrun.errors import DataError
from speedrun.model.ngram import CODE_UNITS, UNITS, Ints

Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Counts:
    """N-grams of one length that are frequent enough, sorted by key, and facts of their context."""

    keys: Ints
    count: Ints
    total: Ints
    """How often the context occurs."""
    followers: Ints
    """How many different tokens follow the context."""


@dataclass(slots=True)
class _Order:
    """Kept n-grams of one length, sorted by key."""

    keys: Ints
    probability: Floats
    codes: NDArray[np.int8]
    contexts: Ints
    backoff: Floats
    """What is left for tokens that the context does not store, by context."""


@dataclass(slots=True)
class _Model:
    vocab_size: int
    unigram: Floats
    orders: list[_Order] = field(default_factory=list)

    def probability(self, keys: Ints, n: int) -> Floats:
        """Of the last token of each n-gram given the others, as the orders so far have it."""
        if n == 1:
            return self.unigram[keys % self.vocab_size]
        order = self.orders[n - 2]
        shorter = self.probability(keys % self.vocab_size ** (n - 1), n - 1)
        context, is_known = _find(order.contexts, keys // self.vocab_size)
        entry, is_kept = _find(order.keys, keys)
        backed_off = np.where(is_known, order.backoff[context], 1.0) * shorter
        return np.where(is_kept, order.probability[entry], backed_off)


def count_ngrams(
    tokens: NDArray[np.uint16], config: CountConfig, vocab_size: int
) -> dict[str, Tensor]:
    """Count all n-grams of a stream and return the buffers of the best pruned table.

    Of each length the `config.entries` with the largest gain are kept: count times the log of what
    storing them adds to the shorter context's probability; and whatever their prefixes need, since
    a trie has no entry without its parent. Probabilities are then fitted again to that set.

    Shapes
        tokens  (num_tokens,)  below `vocab_size`
        result  see `ngram.NgramTable`

    Raises
        DataError: a token is not below `vocab_size`.
    """
    lengths = range(2, len(config.entries) + 2)
    stream = tokens.astype(np.int64)
    frequency = np.bincount(stream, minlength=vocab_size) + 0.5
    if len(frequency) > vocab_size:
        raise DataError(
            f"the text to count holds token {len(frequency) - 1:,}, the model's alphabet "
            f"has {vocab_size:,}; set model.vocab_size to the tokenizer's"
        )
    unigram = np.maximum(np.round(np.log(frequency / frequency.sum()) * UNITS), -(2**15))
    # Sorting releases the interpreter lock, so the lengths share the cores.
    with ThreadPoolExecutor(2) as pool:
        counted = list(pool.map(lambda n: _count(stream, n, vocab_size, config.min_count), lengths))
    base = np.exp(unigram / UNITS)
    wanted: list[Ints] = []
    model = _Model(vocab_size, base)
    for n, counts, entries in zip(lengths, counted, config.entries, strict=True):
        shorter = model.probability(counts.keys % vocab_size ** (n - 1), n - 1)
        gain = counts.count * np.log(_discounted(counts, shorter, config.discount) / shorter)
        floor = max(np.partition(gain, -entries)[-entries] if len(gain) > entries else 0.0, 1e-9)
        wanted.append(counts.keys[gain >= floor])
        model.orders.append(_fit(counts, wanted[-1], model, n, config.discount))
    for i in range(len(wanted) - 1, 0, -1):
        wanted[i - 1] = np.union1d(wanted[i - 1], wanted[i] // vocab_size)
    model = _Model(vocab_size, base)
    for n, counts, keys in zip(lengths, counted, wanted, strict=True):
        model.orders.append(_fit(counts, keys, model, n, config.discount))
    return _to_streams(model, unigram.astype(np.int16))


def _count(stream: Ints, n: int, vocab_size: int, min_count: int) -> _Counts:
    size = max(len(stream) - n + 1, 0)
    keys = stream[:size].copy()
    for place in range(1, n):
        keys *= vocab_size
        keys += stream[place : place + size]
    keys.sort()
    first = _starts(keys)
    keys, count = keys[first], np.diff(np.append(first, len(keys)))
    context_first = _starts(keys // vocab_size)
    followers = np.diff(np.append(context_first, len(keys)))
    total = np.add.reduceat(count, context_first) if len(count) else count
    kept = np.flatnonzero(count >= min_count)
    owner = np.searchsorted(context_first, kept, side="right") - 1
    return _Counts(keys[kept], count[kept], total[owner], followers[owner])


def _discounted(counts: _Counts, shorter: Floats, discount: float) -> Floats:
    """Absolute discounting: what is taken off each count goes to the shorter context's guess."""
    left = discount * counts.followers * shorter
    return (counts.count - discount + left) / counts.total


def _fit(counts: _Counts, keys: Ints, model: _Model, n: int, discount: float) -> _Order:
    place, found = _find(counts.keys, keys)
    assert bool(found.all()), "a prefix is at least as frequent as what it begins"
    chosen = _Counts(keys, counts.count[place], counts.total[place], counts.followers[place])
    shorter = model.probability(keys % model.vocab_size ** (n - 1), n - 1)
    probability = _discounted(chosen, shorter, discount)
    first = _starts(keys // model.vocab_size)
    owner = np.searchsorted(first, np.arange(len(keys)), side="right") - 1
    if not len(keys):
        # `_find` points at place 0 of an empty table too.
        return _Order(keys, np.ones(1), np.zeros(0, dtype=np.int8), keys, np.ones(1))
    stored = np.add.reduceat(probability, first)
    # Nothing may be certain, or the rest of the alphabet would have no probability at all.
    probability = probability / np.maximum(1.0, stored / 0.9999)[owner]
    stored = np.minimum(stored, 0.9999)
    backoff = (1 - stored) / np.maximum(1 - np.add.reduceat(shorter, first), 1e-4)
    nats = np.log(probability / (backoff[owner] * shorter))
    codes = np.clip(np.round(nats * (UNITS / CODE_UNITS)), -127, 127).astype(np.int8)
    return _Order(keys, probability, codes, keys[first] // model.vocab_size, backoff)


def _to_streams(model: _Model, unigram: NDArray[np.int16]) -> dict[str, Tensor]:
    """Entries in parent order, then by rank; `NgramTable._unfold` is the way back."""
    vocab_size = model.vocab_size
    streams: dict[str, NDArray[np.signedinteger]] = {"unigram": unigram}
    rows = np.broadcast_to(unigram.astype(np.int32), (vocab_size, vocab_size)).copy()
    rank = _ranks(rows)
    parents = np.arange(vocab_size)
    for n, order in enumerate(model.orders, start=2):
        context, token = order.keys // vocab_size, order.keys % vocab_size
        by_key = np.argsort(parents)
        place, _ = _find(parents[by_key], context)
        owner = by_key[place] if len(context) else context
        ranks = rank[context % vocab_size, token]
        if n == 2:
            rows[context, token] += order.codes.astype(np.int32) * CODE_UNITS
            rank = _ranks(rows)
        sorting = np.lexsort((ranks, owner))
        owner, ranks = owner[sorting], ranks[sorting]
        is_sister = np.concatenate([[False], owner[1:] == owner[:-1]])[: len(owner)]
        gaps = ranks - np.where(is_sister, np.roll(ranks, 1) + 1, 0)
        streams[f"children_{n}"] = np.bincount(owner, minlength=len(parents)).astype(np.int16)
        streams[f"gaps_{n}"] = gaps.astype(np.int16)
        streams[f"codes_{n}"] = order.codes[sorting]
        parents = order.keys[sorting]
    return {name: torch.from_numpy(stream.copy()) for name, stream in streams.items()}


def _ranks(rows: NDArray[np.int32]) -> Ints:
    """Place of each token when a row is sorted from likely to unlikely."""
    by_rank = np.argsort(-rows, axis=1, kind="stable")
    ranks = np.empty_like(by_rank)
    np.put_along_axis(ranks, by_rank, np.arange(rows.shape[1])[None], axis=1)
    return ranks


def _starts(keys: Ints) -> Ints:
    """Where each run of equal keys begins."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])


def _find(table: Ints, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Place of each key in a sorted table, and whether it is there."""
    if not len(table):
        return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys
