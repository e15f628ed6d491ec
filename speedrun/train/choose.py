"""Pack the average, or the last weights: whichever reads the next training batches better.

The rule and the number of batches are in the recipe, before the run; validation text has no part
in it. What it takes is training time, kept free for it and booked on the budget.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.data.feed import Feed
from speedrun.ranks import Ranks
from speedrun.train.log import RunLog
from speedrun.train.step import Step
from speedrun.train.warmup import random_tokens

SAFETY = 1.5
"""What is kept free is so much more than the rehearsal took."""


def rehearse_choice(step: Step, run: RunConfig, ranks: Ranks, clock: Clock) -> float:
    """Seconds to keep free for `choose`, 0 if the recipe has no choice; reads no training text."""
    if run.average.choose == "average":
        return 0.0
    tokens = random_tokens(run, ranks)
    seconds = 0.0
    for _ in range(2):  # the first compiles
        started_s = clock.now_s
        batch = next(tokens)
        step.measure(batch, batch.roll(-1, dims=1), 1.0).tolist()
        seconds = clock.now_s - started_s
    return 2 * run.average.choose_batches * SAFETY * seconds


def choose(
    candidates: dict[str, dict[str, Tensor]],
    step: Step,
    feed: Feed,
    run: RunConfig,
    ranks: Ranks,
    clock: Clock,
    log: RunLog,
) -> dict[str, Tensor]:
    """Give the first of `candidates` (name -> weights), or another one that has fewer nats.

    All ranks must call; the model is left with the weights of some candidate. When the budget ends
    before all is read, the first one it is.
    """
    parameters = dict(step.model.named_parameters())
    (first, *_) = candidates
    with clock.phase("choose", on_budget=True) as booked:
        clock.keep(clock.elapsed_s)
        batches = [feed.next() for _ in range(run.average.choose_batches)]
        nats: dict[str, float] = {}
        for name, weights in candidates.items():
            _load(parameters, weights)
            total = torch.zeros(1, device=ranks.device)
            for inputs, targets in batches:
                total += step.measure(inputs, targets, 1.0)
            ranks.total(total)
            nats[name] = float(total) / (len(batches) * ranks.world)
        is_late, elapsed_s = ranks.broadcast(clock.elapsed_s > clock.budget_s, clock.elapsed_s)
        if is_late:
            log.line(f"chosen:{first} no time was left to compare")
            return candidates[first]
        clock.keep(elapsed_s)
        best = min(nats, key=lambda name: nats[name])
        booked.update(chosen=best, **nats)
        compared = " ".join(f"{name}:{value:.6f}" for name, value in nats.items())
        log.line(f"chosen:{best} train_nats {compared} over {len(batches)} batches")
    return candidates[best]


@torch.no_grad()
def _load(parameters: Mapping[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        parameters[name].copy_(weight)
