"""Copying counts what really occurred before in the same document, and stays a distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.config import ModelConfig
from speedrun.model import match
from speedrun.model.match import BOS_ID, MEMORY, MEMORY_TOKENS, Evidence, MatchHead, MatchIndex


def draw_windows(
    seed: int, vocab_size: int, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of windows with a document's start (1) here and there."""
    windows = np.random.default_rng(seed).integers(0, vocab_size, (rows, length + 1))
    return windows[:, :-1].copy(), windows[:, 1:].copy()


def occurrences(ids: np.ndarray, b: int, t: int, size: int) -> list[int]:
    """Earlier ends of the suffix of `size` tokens at t, in the same window and document."""
    if t + 1 < size:
        return []
    suffix = ids[b, t + 1 - size : t + 1].tolist()
    return [
        s
        for s in range(size - 1, t)
        if ids[b, s + 1 - size : s + 1].tolist() == suffix
        and BOS_ID not in ids[b, s + 1 : t + 1].tolist()
    ]


def slow_evidence(ids: np.ndarray, targets: np.ndarray, num_lengths: int) -> Evidence:
    rows, length = ids.shape
    facts = torch.zeros(5, rows, length, num_lengths)
    for b in range(rows):
        for m in range(num_lengths):
            record = []
            for t in range(length):
                found = [int(targets[b, s]) for s in occurrences(ids, b, t, m + 1)]
                target = int(targets[b, t])
                past = record[::-1][:MEMORY_TOKENS]
                facts[:, b, t, m] = torch.tensor(
                    [
                        len(found),
                        len(set(found)),
                        sum((1 - MEMORY) * MEMORY**age * was for age, was in enumerate(past)),
                        found.count(target),
                        found[-1:] == [target],
                    ]
                )
                record.append((1 if found[-1] == target else -1) if found else 0)
    return Evidence(*facts.flatten(1, 2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab_size=st.integers(2, 9),
    rows=st.integers(1, 3),
    length=st.integers(1, 30),
    num_lengths=st.integers(1, 5),
)
def test_evidence_agrees_with_looking_it_up(seed, vocab_size, rows, length, num_lengths):
    ids, targets = draw_windows(seed, vocab_size, rows, length)
    fast = MatchIndex(ids, targets, num_lengths).evidence()
    slow = slow_evidence(ids, targets, num_lengths)
    for name in ("total", "distinct", "hits", "repeats"):
        assert torch.equal(getattr(fast, name), getattr(slow, name)), name
    torch.testing.assert_close(fast.success, slow.success, rtol=1e-5, atol=1e-6)
    assert all(fact.dtype == torch.float32 and fact.is_contiguous() for fact in fast)


def test_the_record_reaches_back_its_number_of_tokens():
    ids, targets = draw_windows(3, 3, 1, 150)
    fast = MatchIndex(ids, targets, 2).evidence()
    slow = slow_evidence(ids, targets, 2)
    torch.testing.assert_close(fast.success, slow.success, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), vocab_size=st.integers(2, 6), length=st.integers(1, 25))
def test_votes_are_the_earlier_occurrences(seed, vocab_size, length):
    ids, targets = draw_windows(seed, vocab_size, 2, length)
    index = MatchIndex(ids, targets, 3)
    asked = np.flatnonzero(np.random.default_rng(seed).random(2 * length) < 0.6)
    for m in range(3):
        owners, followers, is_first, latest = index.votes(m, asked)
        for i, position in enumerate(asked.tolist()):
            b, t = divmod(position, length)
            found = [int(targets[b, s]) for s in occurrences(ids, b, t, m + 1)]
            assert followers[owners == i].tolist() == found
            fresh = [float(f not in found[:k]) for k, f in enumerate(found)]
            assert is_first[owners == i].tolist() == fresh
            assert latest[i] == (found[-1] if found else -1)


def test_nothing_matches_across_windows_and_documents():
    ids = np.array([[5, 6, 7, 5, 6], [5, 6, 7, 8, 9], [1, 5, 6, 1, 5]])
    total = MatchIndex(ids, np.roll(ids, -1, axis=1), 2).evidence().total
    assert total[:5].tolist() == [[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]]
    assert not total[5:].any()


def test_evidence_at_a_position_needs_nothing_later():
    ids, targets = draw_windows(8, 4, 2, 40)
    for cut in (1, 13, 39):
        other, after = ids.copy(), targets.copy()
        other[:, cut:] = (other[:, cut:] + 1) % 4
        after[:, cut - 1 :] = (after[:, cut - 1 :] + 1) % 4
        one, two = (MatchIndex(*pair, 4).evidence() for pair in ((ids, targets), (other, after)))
        for name in ("total", "distinct", "success"):
            past = [getattr(e, name).view(2, 40, 4)[:, :cut] for e in (one, two)]
            assert torch.equal(*past), name


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 3),
    length=st.integers(1, 2 * MEMORY_TOKENS + 40),
    first=st.integers(0, 2 * MEMORY_TOKENS + 39),
)
def test_evidence_of_asked_positions_is_that_of_all_bit_for_bit(seed, rows, length, first):
    ids, targets = draw_windows(seed, 4, rows, length)
    index = MatchIndex(ids, targets, 4)
    late = np.arange(rows * length) % length >= min(first, length - 1)
    asked = np.flatnonzero(late & (np.random.default_rng(seed).random(rows * length) < 0.5))
    for part, whole in zip(index.evidence(asked), index.evidence(), strict=True):
        assert torch.equal(part, whole[asked])


def noisy_head(num_lengths: int, vocab_size: int) -> MatchHead:
    config = ModelConfig(
        match_order=num_lengths, vocab_size=vocab_size, width=8, num_heads=2, num_kv_heads=1
    )
    head = MatchHead(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return head


@pytest.mark.parametrize("votes_at_once", [1, 50, 2**20])
@pytest.mark.parametrize(("length", "vocab_size", "num_lengths"), [(60, 5, 4), (90, 30, 8)])
def test_the_mixture_is_a_distribution_and_nats_are_its_logarithms(
    monkeypatch, votes_at_once, length, vocab_size, num_lengths
):
    monkeypatch.setattr(match, "VOTES_AT_ONCE", votes_at_once)
    ids, targets = draw_windows(2, vocab_size, 2, length)
    index, head = MatchIndex(ids, targets, num_lengths), noisy_head(num_lengths, vocab_size)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2 * length, vocab_size, generator=generator)
    hidden = torch.randn(2 * length, 8, generator=generator)
    with torch.no_grad():
        whole = head(logits, hidden, index, np.arange(2 * length))
        torch.testing.assert_close(whole.exp().sum(1), torch.ones(2 * length))
        goal = torch.from_numpy(targets).flatten()
        nats = head.nats(logits, hidden, goal, *index.evidence())
        torch.testing.assert_close(nats, -whole.gather(1, goal[:, None])[:, 0])
        asked = np.array([0, 3, 7, length, 2 * length - 1])
        part = head(logits[asked], hidden[asked], index, asked)
        torch.testing.assert_close(part, whole[asked])
        assert head(logits[:0], hidden[:0], index, asked[:0]).shape == (0, vocab_size)


def test_without_an_occurrence_the_network_is_alone():
    head, ids = noisy_head(3, 9), np.array([[2, 3, 4, 5, 6]])
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    index = MatchIndex(ids, np.roll(ids, -1, axis=1), 3)
    found = head(logits, torch.ones(5, 8), index, np.arange(5))
    torch.testing.assert_close(found, logits.log_softmax(1))


def test_a_window_of_one_token_is_copied_in_pieces(monkeypatch):
    monkeypatch.setattr(match, "VOTES_AT_ONCE", 1000)
    ids = np.full((1, 200), 7)
    index, head = MatchIndex(ids, ids, 2), noisy_head(2, 9)
    found = head(torch.zeros(200, 9), torch.zeros(200, 8), index, np.arange(200))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(200))
    assert (found[1:].argmax(1) == 7).all()
