"""Compile and settle on synthetic tokens before the clock starts, then put everything back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.model.gpt import GPT
from speedrun.ranks import Ranks
from speedrun.train.word import SILENCE

if TYPE_CHECKING:
    from speedrun.train.step import Step


def warm_up(
    model: GPT,
    optimizers: list[torch.optim.Optimizer],
    step: Step,
    run: RunConfig,
    ranks: Ranks,
    clock: Clock,
) -> float:
    """Run `train.warmup_steps` full steps on random tokens and restore weights and optimisers.

    Every graph that the run will use is compiled, also those that come into use later. No training
    text is read. Returns the seconds of the slowest compiled step.
    """
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    tokens = random_tokens(run, ranks)
    slowest_s = 0.0
    for number, progress in enumerate(step.graph_starts):
        # One more step than asked for: the first compiles, and a later one is what is measured.
        for _ in range(1 if number else run.train.warmup_steps):
            _take(step, next(tokens), progress, ranks, clock)
        slowest_s = max(slowest_s, _take(step, next(tokens), progress, ranks, clock))
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    return slowest_s


def random_tokens(run: RunConfig, ranks: Ranks) -> Iterator[Tensor]:
    """One rank's share of batches of random tokens, without end: (sequences, T) int64."""
    sequences = run.data.tokens_per_step // run.data.sequence_length // ranks.world
    shape = (sequences, run.data.sequence_length)
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(run.model.vocab_size, shape, generator=generator).to(ranks.device)


def _take(step: Step, tokens: Tensor, progress: float, ranks: Ranks, clock: Clock) -> float:
    """Seconds of one step."""
    started_s = clock.now_s
    step(tokens, tokens.roll(-1, dims=1), progress, lambda: SILENCE)
    ranks.synchronize()
    return clock.now_s - started_s
