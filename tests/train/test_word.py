"""Protects the decision that all ranks obey: made early enough, and by rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from speedrun.clock import Clock, Ledger
from speedrun.config import TrainConfig
from speedrun.ranks import Ranks
from speedrun.train.pace import Pace
from speedrun.train.word import SILENCE, Speaker


@pytest.fixture
def time(bench: Any) -> Any:
    return bench.fake_time()


@pytest.fixture
def speaker(time: Any) -> Iterator[Callable[..., Speaker]]:
    """Makes speakers with a budget of ten seconds, of which none is spent, and steps of one."""
    with ExitStack() as phases:

        def make(*, rank: int = 0, **more: Any) -> Speaker:
            clock = Clock(10.0, Ledger(None), now=time)
            phases.enter_context(clock.phase("train", on_budget=True))
            return Speaker(
                TrainConfig(max_steps=100, checkpoint_every_s=3.0),
                clock,
                Ranks(rank=rank, world=2),
                Pace(1.0),
                **({"should_stop": lambda: False, "can_save": True} | more),
            )

        yield make


def test_other_ranks_keep_silent(speaker: Any, time: Any) -> None:
    asked: list[int] = []
    told = speaker(rank=1, should_stop=lambda: bool(asked.append(1))).speak(5)
    assert told == SILENCE and not asked


def test_a_step_is_decided_on_while_there_is_time_for_the_slowest(speaker: Any, time: Any) -> None:
    told = speaker()
    told.pace.record(1.4)  # as when four tenths were left of the step before
    told.pace.record(1.0)
    time.pass_(8.5)
    assert told.speak(5).goes_on and told.decided_s == 8.5
    time.pass_(0.2)
    assert not told.speak(5).goes_on and told.decided_s == 8.7


def test_what_comes_after_training_is_kept_free(speaker: Any, time: Any) -> None:
    told = speaker()
    told.pace.reserved_s = 2.0
    time.pass_(6.9)
    assert told.speak(5).goes_on
    time.pass_(0.2)
    assert not told.speak(5).goes_on


def test_progress_is_the_larger_share(speaker: Any, time: Any) -> None:
    told = speaker()
    time.pass_(2.0)
    assert told.speak(5).progress == pytest.approx(0.2)
    assert told.speak(50).progress == pytest.approx(0.5)
    assert not told.speak(100).goes_on


def test_progress_is_what_a_float32_message_carries(speaker: Any) -> None:
    told = speaker().speak(7).progress
    assert told != 0.07
    assert told == float(torch.tensor([0.07], dtype=torch.float32))


def test_a_signal_ends_the_run(speaker: Any, time: Any) -> None:
    told = speaker(should_stop=lambda: True).speak(5)
    assert (told.goes_on, told.is_signalled) == (False, True)


def test_saving_is_due_every_so_many_seconds(speaker: Any, time: Any) -> None:
    told = speaker()
    saves = []
    for step in range(8):
        saves.append(bool(told.speak(step).saves))
        time.pass_(1.0)
    assert saves == [False, False, False, True, False, False, True, False]
    assert not speaker(can_save=False).speak(5).saves
