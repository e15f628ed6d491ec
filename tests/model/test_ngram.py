"""The stored trie means what its docstring says, whoever wrote the streams and however damaged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speedrun.config import ModelConfig
from speedrun.errors import ConfigError, FormatError
from speedrun.model.ngram import NgramTable, spans


def config(vocab_size: int = 5, order: int = 4) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, ngram_order=order, width=8, num_heads=2, num_kv_heads=1
    )


def filled(streams: dict[str, Tensor], vocab_size: int = 5, order: int = 4) -> NgramTable:
    table = NgramTable(config(vocab_size, order))
    table.fill(streams)
    return table


def draw_streams(seed: int, vocab_size: int = 5, order: int = 4) -> dict[str, Tensor]:
    """A random trie: any set of ranks may follow any entry."""
    dice = np.random.default_rng(seed)
    share = dice.choice([0.0, 0.2, 0.7])
    streams = {"unigram": dice.integers(-60, 0, vocab_size, dtype=np.int16)}
    parents = vocab_size
    for n in range(2, order + 1):
        ranks = [np.flatnonzero(dice.random(vocab_size) < share) for _ in range(parents)]
        streams[f"children_{n}"] = np.array([len(found) for found in ranks], dtype=np.int16)
        gaps = [np.diff(found, prepend=-1) - 1 for found in ranks]
        streams[f"gaps_{n}"] = np.concatenate([*gaps, []]).astype(np.int16)
        parents = len(streams[f"gaps_{n}"])
        streams[f"codes_{n}"] = dice.integers(-127, 128, parents).astype(np.int8)
    return {name: torch.from_numpy(stream) for name, stream in streams.items()}


def ask_all(table: NgramTable, ids: Tensor) -> Tensor:
    return table.logits(ids, torch.ones_like(ids, dtype=torch.bool))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab_size=st.integers(2, 6),
    order=st.integers(2, 5),
    length=st.integers(1, 9),
)
def test_logits_are_the_sum_over_all_stored_suffixes(read_trie, seed, vocab_size, order, length):
    streams = draw_streams(seed, vocab_size, order)
    trie = read_trie(streams, order)
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, vocab_size, (2, length)))
    slow = streams["unigram"].float().div(16).repeat(2, length, 1)
    for row, window in enumerate(ids.tolist()):
        for t in range(length):
            for back in range(1, min(t + 1, order - 1) + 1):
                context = tuple(window[t + 1 - back : t + 1])
                for token in range(vocab_size):
                    slow[row, t, token] += trie.get((*context, token), 0) / 2
    table = filled(streams, vocab_size, order)
    # Halves and sixteenths below 2 ** 10: float32 adds them exactly.
    assert torch.equal(ask_all(table, ids), slow.flatten(0, 1))


def test_asked_positions_are_rows_of_the_whole_answer():
    table = filled(draw_streams(3))
    ids = torch.randint(5, (3, 11), generator=torch.Generator().manual_seed(1))
    asked = torch.rand(3, 11, generator=torch.Generator().manual_seed(2)) < 0.3
    assert torch.equal(table.logits(ids, asked), ask_all(table, ids)[asked.flatten()])
    assert table.logits(ids, torch.zeros_like(asked)).shape == (0, 5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_windows_shorter_than_the_order_have_short_contexts_only(length):
    streams = draw_streams(4, order=5)
    ids = torch.tensor([[3, 1, 4, 1, 2]])
    whole = ask_all(filled(streams, order=5), ids)
    assert torch.equal(ask_all(filled(streams, order=5), ids[:, :length]), whole[:length])


def test_an_answer_is_not_overwritten_while_somebody_holds_it():
    table = filled(draw_streams(5))
    first, second = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 4, 0]])
    held = ask_all(table, first)
    part = ask_all(table, second)[1:]
    copies = held.clone(), part.clone()
    for _ in range(3):
        ask_all(table, torch.tensor([[0, 0, 0]]))
    assert torch.equal(held, copies[0]) and torch.equal(part, copies[1])


def test_a_graph_holds_its_answer_until_it_has_run_backward():
    table = filled(draw_streams(5))
    logits, hidden = torch.zeros(3, 5), torch.zeros(3, 8)
    ids = torch.tensor([[1, 2, 3]])
    loss = table(logits, hidden, ask_all(table, ids)).square().sum()
    ask_all(table, torch.tensor([[0, 0, 0]]))
    loss.backward()
    assert float(table.gain.grad) == float(2 * ask_all(table, ids).square().sum())


def test_an_empty_table_says_that_all_tokens_are_alike():
    table = NgramTable(config())
    assert torch.equal(ask_all(table, torch.tensor([[0, 4, 2]])), torch.zeros(3, 5))


def test_streams_survive_a_state_dict():
    table, other = filled(draw_streams(6)), NgramTable(config())
    ids = torch.randint(5, (4, 9), generator=torch.Generator().manual_seed(1))
    ask_all(other, ids)
    other.load_state_dict(table.state_dict(), strict=True)
    assert torch.equal(ask_all(other, ids), ask_all(table, ids))
    assert all(torch.equal(other.state_dict()[name], s) for name, s in table.state_dict().items())
    other.load_state_dict(NgramTable(config()).state_dict(), strict=True)  # and shrink again
    assert not ask_all(other, ids).any()


def test_gain_and_tilt_weigh_the_counted_logits():
    table = NgramTable(config())
    with torch.no_grad():
        table.gain.fill_(0.5)
        table.tilt[2] = 2.0
    hidden = torch.zeros(1, 8)
    hidden[0, 2] = 3.0
    counted = torch.tensor([[1.0, 2.0, 0.0, -1.0, 4.0]])
    assert torch.equal(table(torch.ones(1, 5), hidden, counted), 1 + 6.5 * counted)


def ints(*values: int, dtype: torch.dtype = torch.int16) -> Tensor:
    return torch.tensor(values, dtype=dtype)


HOSTILE = {
    "a negative count": ({"children_2": ints(1, -1, 0, 0, 1)}, "children_2"),
    "counts that cancel": ({"children_2": ints(32767, -32767, 0, 0, 1)}, "children_2"),
    "a negative gap": ({"gaps_2": ints(-1)}, "children_2"),
    "a rank beyond the alphabet": ({"gaps_2": ints(5)}, "gaps_2 lead beyond the 5 tokens"),
    "a rank that would wrap": ({"gaps_2": ints(32767)}, "gaps_2 lead beyond"),
    "too few counts": ({"children_2": ints(1, 0)}, "children_2"),
    "too many counts": ({"children_2": ints(1, 0, 0, 0, 0, 0)}, "children_2"),
    "no counts": ({"children_2": ints()}, "children_2"),
    "huge counts": ({"children_2": ints(*[32767] * 5)}, "gaps_2 and codes_2"),
    "a huge count further up": ({"children_3": ints(32767)}, "gaps_3 and codes_3"),
    "more gaps than counts": ({"gaps_2": ints(0, 0)}, "gaps_2"),
    "fewer codes than gaps": ({"codes_2": ints(dtype=torch.int8)}, "codes_2"),
    "children without a parent": ({"children_4": ints(1), "gaps_4": ints(0)}, "children_4"),
    "another alphabet": ({"unigram": ints(0, 0)}, r"unigram has shape \(2,\)"),
    "no alphabet": ({"unigram": ints()}, r"unigram has shape \(0,\)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams_are_refused(name):
    changes, text = HOSTILE[name]
    streams = {key: stream.clone() for key, stream in NgramTable(config()).named_buffers()}
    streams |= {
        "children_2": ints(1, 0, 0, 0, 0),
        "gaps_2": ints(2),
        "codes_2": ints(3, dtype=torch.int8),
        "children_3": ints(0),
    }
    ask_all(filled(streams), torch.tensor([[0]]))
    with pytest.raises(FormatError, match=text):
        filled(streams | changes)
    table = NgramTable(config())
    table.load_state_dict({**table.state_dict(), **streams, **changes})
    with pytest.raises(FormatError, match=text):
        ask_all(table, torch.tensor([[0]]))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 3))
def test_damaged_streams_are_refused_or_give_finite_logits(seed, flips):
    streams = draw_streams(seed)
    dice = np.random.default_rng(seed)
    for _ in range(flips):
        stream = streams[dice.choice([name for name, s in streams.items() if len(s)])]
        limits = torch.iinfo(stream.dtype)
        stream[dice.integers(len(stream))] = int(dice.integers(limits.min, limits.max + 1))
    try:
        table = filled(streams)
    except FormatError:
        return
    assert ask_all(table, torch.arange(5)[None]).isfinite().all()


@pytest.mark.parametrize("changes", [{"gaps_2": ints(0)[None]}, {"gaps_2": torch.zeros(1)}])
def test_streams_of_another_kind_do_not_load(changes):
    table = NgramTable(config())
    with pytest.raises(RuntimeError, match="size mismatch for gaps_2"):
        table.load_state_dict({**table.state_dict(), **changes})


@pytest.mark.parametrize(("vocab_size", "order"), [(8193, 2), (256, 8), (5, 1), (5, 9)])
def test_tables_whose_keys_or_matrix_have_no_room_are_refused(vocab_size, order):
    with pytest.raises(ConfigError, match="ngram_order"):
        config(vocab_size, order)


def test_the_longest_keys_fit():
    # 128 ** 8 is 2 ** 56; one more bit per token would leave 63.
    order, top = 8, 127
    streams = dict(NgramTable(config(128, order)).named_buffers())
    streams["children_2"] = torch.zeros(128, dtype=torch.int16)
    streams["children_2"][top] = 1
    for n in range(2, order + 1):
        if n > 2:
            streams[f"children_{n}"] = ints(1)
        streams[f"gaps_{n}"] = ints(0 if n > 2 else top)  # its correction makes it the first
        streams[f"codes_{n}"] = ints(100, dtype=torch.int8)
    answer = ask_all(filled(streams, 128, order), torch.full((1, 9), top))
    assert answer[:, top].tolist() == [50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 350.0, 350.0, 350.0]


def test_spans_are_runs_one_after_the_other():
    entries, owners = spans(np.array([7, 2, 5]), np.array([2, 0, 3]), np.array([10, 20, 30]))
    assert entries.tolist() == [7, 8, 5, 6, 7]
    assert owners.tolist() == [10, 10, 30, 30, 30]
