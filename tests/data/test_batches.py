"""A batch depends on (seed, step) alone; an epoch deals each window once; ranks share a batch."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from speedrun.config import CountConfig, DataConfig, ModelConfig, RunConfig
from speedrun.data.batches import Batches, align, open_batches
from speedrun.data.shards import open_shard, write_shard
from speedrun.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shards(tmp_path):
    """Three shards whose token ids say where they lie: 41, 1 and 27 tokens."""
    paths = [tmp_path / f"x_train_{index:06d}.bin" for index in range(3)]
    for path, start, size in zip(paths, (0, 100, 200), (41, 1, 27), strict=True):
        write_shard(path, np.arange(start, start + size))
    return paths


def make(shards, **changes):
    return Batches(shards, **{"sequence_length": 8, "tokens_per_step": 16, "seed": 1, **changes})


def test_sequential_windows_follow_the_shards(shards):
    inputs, targets = make(shards).at(0)
    assert inputs.tolist() == [list(range(0, 8)), list(range(8, 16))]
    assert targets.tolist() == [list(range(1, 9)), list(range(9, 17))]
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_windows_do_not_cross_files(shards, order):
    batches = make(shards, order=order)
    assert batches.num_windows == 5 + 0 + 3
    for step in range(12):
        inputs, targets = batches.at(step)
        assert (torch.cat([inputs, targets[:, -1:]], dim=1).diff(dim=1) == 1).all()
        assert (targets == inputs + 1).all()


def test_an_epoch_deals_each_window_once_and_the_next_in_another_order(shards):
    batches = make(shards, order="shuffled")
    epochs = [
        [tuple(row) for step in range(4) for row in batches.at(epoch * 4 + step)[0].tolist()]
        for epoch in range(3)
    ]
    for epoch in epochs:
        tokens = [token for row in epoch for token in row]
        assert len(set(tokens)) == len(tokens) == 8 * 8
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({min(min(row) for row in epoch if row[0] >= 200) for epoch in epochs}) > 1  # phases


def test_any_step_can_be_asked_for_first(shards):
    straight = [make(shards, order="shuffled").at(step)[0] for step in (0, 3, 4, 11, 2)]
    batches = make(shards, order="shuffled")
    jumping = {step: batches.at(step)[0] for step in (11, 0, 2, 4, 3)}
    for step, batch in zip((0, 3, 4, 11, 2), straight, strict=True):
        assert torch.equal(batch, jumping[step])


def test_a_batch_may_straddle_two_epochs(shards):
    batches = make(shards, tokens_per_step=24, order="shuffled")
    flat = make(shards, tokens_per_step=8, order="shuffled")
    assert torch.equal(batches.at(2)[0], torch.cat([flat.at(step)[0] for step in (6, 7, 8)]))


def test_golden_order(shards):
    # Frozen: a change here changes every run of a seed.
    batches = make(shards, tokens_per_step=64, order="shuffled")
    assert batches.at(0)[0][:, 0].tolist() == [209, 8, 32, 16, 201, 217, 24, 0]


def test_another_seed_is_another_order(shards):
    one, other = (make(shards, tokens_per_step=64, order="shuffled", seed=seed) for seed in (1, -2))
    assert not torch.equal(one.at(0)[0], other.at(0)[0])


def test_ranks_share_the_global_batch(shards):
    batches = make(shards, tokens_per_step=32, order="shuffled")
    parts = [batches.for_rank(3, rank=rank, world=2) for rank in range(2)]
    for whole, pieces in zip(batches.at(3), zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_ranks_that_do_not_divide_the_batch_are_refused(shards):
    with pytest.raises(DataError, match="2 sequences a step cannot be shared by 3 ranks"):
        make(shards).for_rank(0, rank=0, world=3)


def test_less_than_one_batch_is_refused(shards):
    with pytest.raises(DataError, match="hold 8 windows of 9 tokens, one step needs 9"):
        make(shards, tokens_per_step=72)


def test_a_partial_sequence_is_refused(shards):
    with pytest.raises(DataError, match="not a whole number of sequences"):
        make(shards, tokens_per_step=20)


def test_a_token_outside_the_alphabet_is_named(shards):
    batches = make(shards, vocab_size=200)
    batches.at(0)
    with pytest.raises(DataError, match=r"x_train_000002\.bin holds token 2\d\d.*alphabet has 200"):
        batches.at(2)


@pytest.mark.parametrize("last_tokens", [17, 26, 27, 28, 29, 34, 35, 1000])
@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_windows_of_the_last_tokens_never_show_an_earlier_one(shards, last_tokens, order):
    batches = make(shards, last_tokens=last_tokens, order=order, tokens_per_step=8)
    earlier = np.concatenate(batches.earlier).tolist()
    assert earlier == [*range(41), 100, *range(200, 227)][: 69 - min(last_tokens, 35)]
    shown = set()
    for step in range(4 * batches.num_windows):
        for part in batches.at(step):
            shown |= set(part.flatten().tolist())
    assert shown and not shown & set(earlier)


def test_all_tokens_are_shown_where_none_are_kept_back(shards):
    assert make(shards).earlier == []
    assert make(shards).num_windows == 8


def test_too_few_last_tokens_are_refused(shards):
    with pytest.raises(DataError, match="hold 0 windows of 9 tokens, one step needs 2"):
        make(shards, last_tokens=8)


@pytest.mark.parametrize(("ngram_order", "num_earlier"), [(0, 0), (3, 69 - 20)])
def test_a_recipe_that_counts_keeps_its_held_out_tokens_back(shards, ngram_order, num_earlier):
    run = RunConfig(
        name="t",
        seed=1,
        model=ModelConfig(vocab_size=300, ngram_order=ngram_order),
        count=CountConfig(entries=(5,) * max(ngram_order - 1, 0), held_out_tokens=20),
        data=DataConfig(sequence_length=8, tokens_per_step=16, micro_batch_tokens=16),
    )
    assert sum(map(len, open_batches(shards, run).earlier)) == num_earlier


def test_a_truncated_shard_is_refused_at_the_start(shards):
    shards[2].write_bytes(shards[2].read_bytes()[:-2])
    with pytest.raises(DataError, match="26 tokens, header promises 27"):
        make(shards)


BOS = 1


def documents_of(sizes: list[int]) -> np.ndarray:
    """Documents of these sizes; each token but BOS is its place plus 1,000."""
    tokens = np.arange(sum(sizes)) + 1_000
    tokens[np.cumsum([0, *sizes[:-1]])] = BOS
    return tokens


def test_windows_of_documents_begin_with_one_or_go_on_with_a_long_one():
    tokens = documents_of([3, 4, 20, 5, 5, 9, 2])
    starts = align(tokens, 8, BOS).tolist()
    # 0 holds two documents and cuts the third; 7 to 23 are that long one; 27 begins a document.
    assert starts == [0, 7, 15, 23, 27, 32, 37]
    begins = np.flatnonzero(tokens == BOS).tolist()
    for start, following in pairwise(starts):
        assert following <= start + 8  # nothing between two windows is left out
        assert following in begins or following == start + 8


def test_no_token_is_left_out_by_documents_but_the_last_few():
    dice = np.random.default_rng(5)
    tokens = documents_of(dice.integers(1, 40, 300).tolist())
    shown = {place for start in align(tokens, 16, BOS) for place in range(start, start + 17)}
    assert shown == set(range(max(shown) + 1)) and tokens.size - max(shown) <= 17


def test_the_order_of_documents_is_a_permutation_of_their_windows(tmp_path):
    paths = [tmp_path / f"x_train_{index:06d}.bin" for index in range(3)]
    dice = np.random.default_rng(6)
    for path, count in zip(paths, (40, 0, 25), strict=True):
        sizes = dice.integers(1, 20, count).tolist()
        write_shard(path, documents_of(sizes) if count else np.empty(0, dtype=np.uint16))
    batches = make(paths, order="documents", bos_id=BOS)
    aligned = [align(open_shard(path), 8, BOS) for path in paths]
    expected = sorted(
        tuple(open_shard(path)[start : start + 8].tolist())
        for path, starts in zip(paths, aligned, strict=True)
        for start in starts
    )
    assert batches.num_windows == len(expected)
    flat = make(paths, order="documents", tokens_per_step=8, bos_id=BOS)
    rows = [tuple(flat.at(step)[0][0].tolist()) for step in range(flat.num_windows)]
    assert sorted(rows) == expected and rows != expected
    assert torch.equal(batches.at(1)[0], torch.cat([flat.at(step)[0] for step in (2, 3)]))


def test_rows_are_inputs_and_targets_in_one(shards):
    batches = make(shards, tokens_per_step=32, order="shuffled")
    rows = batches.rows(2, rank=1, world=2)
    inputs, targets = batches.for_rank(2, rank=1, world=2)
    assert rows.dtype == np.uint16
    assert rows[:, :-1].tolist() == inputs.tolist() and rows[:, 1:].tolist() == targets.tolist()


RANKS = """
import os, sys
from pathlib import Path
import numpy as np
from speedrun.data.batches import Batches
from speedrun.data.feed import Feed

def deal(order, rank, world):
    shards = sorted(Path().glob("x_train_*.bin"))
    batches = Batches(shards, sequence_length=16, tokens_per_step=128, order=order, seed=3)
    with Feed(batches, rank=rank, world=world, step=5, ahead=2) as feed:
        both = [np.stack([part.numpy() for part in feed.next()]) for _ in range(6)]
    np.save(f"{order}-{world}-{rank}.npy", np.stack(both))

failed = 0
for order, world in (("shuffled", 1), ("shuffled", 2), ("shuffled", 4), ("documents", 2)):
    children = []
    for rank in range(world):
        if not (child := os.fork()):
            deal(order, rank, world)
            os._exit(0)
        children.append(child)
    failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
sys.exit(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_one_two_and_four_processes_deal_the_same_global_batches(tmp_path):
    dice = np.random.default_rng(7)
    for index in range(3):
        sizes = dice.integers(2, 60, 30).tolist()
        write_shard(tmp_path / f"x_train_{index:06d}.bin", documents_of(sizes))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", RANKS], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    shards = sorted(tmp_path.glob("x_train_*.bin"))
    for order, worlds in (("shuffled", (1, 2, 4)), ("documents", (2,))):
        batches = make(shards, sequence_length=16, tokens_per_step=128, order=order, seed=3)
        whole = np.stack([np.stack([p.numpy() for p in batches.at(s)]) for s in range(5, 11)])
        for world in worlds:
            parts = [np.load(tmp_path / f"{order}-{world}-{rank}.npy") for rank in range(world)]
            assert np.array_equal(np.concatenate(parts, axis=2), whole)
