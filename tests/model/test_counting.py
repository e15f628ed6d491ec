"""Counting agrees with a slow dictionary model, and short or odd texts are no trouble."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.config import CountConfig, ModelConfig
from speedrun.errors import DataError
from speedrun.model.counting import count_ngrams
from speedrun.model.ngram import NgramTable

Ngram = tuple[int, ...]


def slow_count(text: list[int], config: CountConfig, vocab_size: int) -> dict[Ngram, float]:
    """Correction of each kept n-gram in half nats, not rounded; written from the formulas."""
    frequency = Counter(text)
    total = len(text) + vocab_size / 2
    unigram = {
        (t,): math.exp(round(math.log((frequency[t] + 0.5) / total) * 16) / 16)
        for t in range(vocab_size)
    }
    order = len(config.entries) + 1
    counts = {
        n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        for n in range(2, order + 1)
    }
    context_total: Counter[Ngram] = Counter()
    followers: Counter[Ngram] = Counter()
    for n in counts:
        for ngram, count in counts[n].items():
            context_total[ngram[:-1]] += count
            followers[ngram[:-1]] += 1

    stored: dict[Ngram, float] = dict(unigram)
    backoff: dict[Ngram, float] = {}

    def probability(ngram: Ngram) -> float:
        if ngram in stored:
            return stored[ngram]
        return backoff.get(ngram[:-1], 1.0) * probability(ngram[1:])

    def discounted(ngram: Ngram) -> float:
        context, discount = ngram[:-1], config.discount
        left = discount * followers[context] * probability(ngram[1:])
        return (counts[len(ngram)][ngram] - discount + left) / context_total[context]

    def store(kept: set[Ngram]) -> None:
        by_context: dict[Ngram, list[Ngram]] = defaultdict(list)
        for ngram in sorted(kept):
            by_context[ngram[:-1]].append(ngram)
        fitted = {ngram: discounted(ngram) for ngram in kept}
        for context, ngrams in by_context.items():
            shorter = sum(probability(ngram[1:]) for ngram in ngrams)
            mass = sum(fitted[ngram] for ngram in ngrams)
            for ngram in ngrams:
                fitted[ngram] /= max(1.0, mass / 0.9999)
            backoff[context] = (1 - min(mass, 0.9999)) / max(1 - shorter, 1e-4)
        stored.update(fitted)

    wanted: dict[int, set[Ngram]] = {}
    for n, entries in zip(counts, config.entries, strict=True):
        frequent = [ngram for ngram, count in counts[n].items() if count >= config.min_count]
        gains = {
            ngram: counts[n][ngram] * math.log(discounted(ngram) / probability(ngram[1:]))
            for ngram in frequent
        }
        best = sorted(gains.values(), reverse=True)[:entries]
        floor = max(best[-1], 1e-9) if len(gains) > entries else 1e-9
        wanted[n] = {ngram for ngram, gain in gains.items() if gain >= floor}
        store(wanted[n])
    for n in range(order, 2, -1):
        wanted[n - 1] |= {ngram[:-1] for ngram in wanted[n]}
    stored, backoff = dict(unigram), {}
    codes = {}
    for n in counts:
        shorter = {ngram: probability(ngram[1:]) for ngram in wanted[n]}
        store(wanted[n])
        for ngram in wanted[n]:
            codes[ngram] = 2 * math.log(stored[ngram] / (backoff[ngram[:-1]] * shorter[ngram]))
    return codes


def draw_text(seed: int, vocab_size: int, size: int) -> np.ndarray:
    """Tokens that depend on the one before, so that there is something to count."""
    dice = np.random.default_rng(seed)
    text = [0]
    while len(text) < size:
        text.append(int((text[-1] * 3 + dice.integers(0, 3)) % vocab_size))
    return np.array(text[:size], dtype=np.uint16)


@pytest.mark.parametrize("entries", [(8,), (12, 9), (10, 12, 9, 30), (500, 500, 500)])
@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_counting_agrees_with_dictionaries(read_trie, entries, min_count, seed):
    config = CountConfig(entries=entries, min_count=min_count)
    text = draw_text(seed, 7, 400)
    slow = slow_count(text.tolist(), config, 7)
    trie = read_trie(count_ngrams(text, config, 7), len(entries) + 1)
    assert trie.keys() == slow.keys()
    # Rounded to integers; the sums' order may decide the last digit of a half.
    assert all(abs(code - slow[ngram]) <= 0.5 + 1e-6 for ngram, code in trie.items())


def test_the_table_predicts_better_than_frequencies_do():
    text = draw_text(1, 7, 3000)
    table = NgramTable(
        ModelConfig(vocab_size=7, ngram_order=3, width=8, num_heads=2, num_kv_heads=1)
    )
    table.fill(count_ngrams(text, CountConfig(entries=(30, 60)), 7))
    ids = torch.from_numpy(draw_text(2, 7, 500).astype(np.int64))[None]
    logits = table.logits(ids[:, :-1], torch.ones_like(ids[:, :-1], dtype=torch.bool))
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    # Three tokens may follow each one: log 3 is the best there is, log 7 what frequencies give.
    assert math.log(3) < nats < math.log(3) + 0.1


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.integers(0, 3), max_size=12),
    order=st.integers(2, 6),
    min_count=st.integers(1, 4),
)
def test_any_short_text_gives_a_table_that_loads(read_trie, text, order, min_count):
    tokens = np.array(text, dtype=np.uint16)
    config = CountConfig(entries=(5,) * (order - 1), min_count=min_count)
    streams = count_ngrams(tokens, config, 4)
    table = NgramTable(
        ModelConfig(vocab_size=4, ngram_order=order, width=8, num_heads=2, num_kv_heads=1)
    )
    assert {name: s.dtype for name, s in streams.items()} == {
        name: s.dtype for name, s in table.named_buffers()
    }
    table.fill(streams)
    ids = torch.arange(4)[None]
    assert table.logits(ids, torch.ones_like(ids, dtype=torch.bool)).isfinite().all()
    seen = {tuple(text[i : i + n]) for n in range(2, order + 1) for i in range(len(text))}
    assert read_trie(streams, order).keys() <= seen


def test_one_repeated_token_leaves_the_others_some_probability():
    streams = count_ngrams(np.full(1000, 2, np.uint16), CountConfig(entries=(9, 9)), 4)
    table = NgramTable(
        ModelConfig(vocab_size=4, ngram_order=3, width=8, num_heads=2, num_kv_heads=1)
    )
    table.fill(streams)
    ids = torch.tensor([[2, 2]])
    shares = table.logits(ids, torch.ones_like(ids, dtype=torch.bool)).softmax(1)
    assert (shares[:, 2] > 0.99).all() and (shares > 0).all()


def test_nothing_frequent_enough_leaves_frequencies():
    streams = count_ngrams(np.arange(50, dtype=np.uint16), CountConfig(entries=(9, 9)), 50)
    assert not streams["children_2"].any() and streams["children_2"].shape == (50,)
    assert all(len(streams[f"{part}_{n}"]) == 0 for n in (2, 3) for part in ("gaps", "codes"))


def test_counting_again_gives_the_same_bytes():
    text, config = draw_text(4, 200, 30_000), CountConfig(entries=(300, 200, 100), min_count=2)
    first, again = (count_ngrams(text, config, 200) for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_entries_limit_what_is_kept_but_for_prefixes(read_trie):
    text = draw_text(5, 50, 20_000)
    trie = read_trie(count_ngrams(text, CountConfig(entries=(40, 70)), 50), 3)
    longest = [ngram for ngram in trie if len(ngram) == 3]
    assert len(longest) == 70
    prefixes = {ngram[:-1] for ngram in longest}
    assert 40 <= len(trie) - 70 <= 40 + len(prefixes)
    assert prefixes <= trie.keys()


def test_a_token_outside_the_alphabet_is_named():
    with pytest.raises(DataError, match=r"holds token 9, the model's alphabet has 9"):
        count_ngrams(np.array([1, 9, 2], np.uint16), CountConfig(entries=(4,)), 9)
