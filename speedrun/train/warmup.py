"""Compile and settle on synthetic tokens before the clock starts, then put everything back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.model.gpt import GPT
from speedrun.ranks import Ranks

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

    No training text is read. Returns the seconds of the last step: what a compiled step takes.
    """
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    sequences = run.data.tokens_per_step // run.data.sequence_length // ranks.world
    shape = (sequences, run.data.sequence_length)
    generator = torch.Generator().manual_seed(0)
    # One more step than asked for: the first compiles, and a later one is what is measured.
    for _ in range(run.train.warmup_steps + 1):
        tokens = torch.randint(run.model.vocab_size, shape, generator=generator).to(ranks.device)
        started_s = clock.now_s
        step(tokens, tokens.roll(-1, dims=1), 0.0)
        ranks.synchronize()
        seconds = clock.now_s - started_s
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    return seconds
