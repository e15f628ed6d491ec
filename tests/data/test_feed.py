"""A feed gives the batches of `Batches`, whoever makes them ready, and goes on where it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from speedrun.data.batches import Batches
from speedrun.data.feed import Feed
from speedrun.data.shards import write_shard
from speedrun.errors import DataError


@pytest.fixture
def batches(tmp_path) -> Batches:
    tokens = np.random.default_rng(1).integers(0, 65_536, 3_000)
    write_shard(tmp_path / "x_train_000000.bin", tokens)
    return Batches(
        [tmp_path / "x_train_000000.bin"],
        sequence_length=16,
        tokens_per_step=64,
        order="shuffled",
        seed=4,
    )


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_feed_gives_the_batches_in_their_order(batches, ahead):
    with Feed(batches, step=3, ahead=ahead) as feed:
        for step in range(3, 80):  # into the second epoch
            for found, expected in zip(feed.next(), batches.at(step), strict=True):
                assert torch.equal(found, expected)
                assert found.dtype == torch.int64 and found.is_contiguous()


def test_a_closed_feed_leaves_no_thread(batches):
    before = threading.active_count()
    with Feed(batches, ahead=2) as feed:
        feed.next()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_error_comes_out_where_the_batch_is_asked_for(batches):
    batches.vocab_size = 10
    with Feed(batches, ahead=2) as feed, pytest.raises(DataError, match="holds token"):
        feed.next()


@pytest.mark.parametrize(("ahead", "resumed_ahead"), [(0, 2), (2, 0), (2, 2)])
def test_a_state_goes_on_with_the_very_next_batch(batches, ahead, resumed_ahead):
    with Feed(batches, ahead=ahead) as feed:
        for _ in range(7):
            feed.next()
        state = feed.state()  # what waits in the background is not counted
        following = [feed.next()[0] for _ in range(3)]
    other = Feed(batches, rank=1, world=2, ahead=resumed_ahead)
    other.restore(state)
    with other:
        for whole in following:
            assert torch.equal(other.next()[0], whole[2:])


def test_a_state_of_another_stream_is_refused(batches, tmp_path):
    state = Feed(batches).state()
    other = Batches(
        [tmp_path / "x_train_000000.bin"], sequence_length=16, tokens_per_step=64, seed=5
    )
    with pytest.raises(DataError, match="order was shuffled, is sequential"):
        Feed(other).restore(state)
    with pytest.raises(DataError, match="another stream: step was None"):
        Feed(batches).restore({**state, "step": None})


@pytest.mark.gpu
def test_on_a_gpu_batches_are_the_same(batches):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with Feed(batches, device=torch.device("cuda")) as feed:
        for step in range(60):
            for found, expected in zip(feed.next(), batches.at(step), strict=True):
                assert found.is_cuda and torch.equal(found.cpu(), expected)
