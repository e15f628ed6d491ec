"""The story of a run: warm up, step until the clock says stop, hand back the average."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.data.batches import Batches
from speedrun.errors import BudgetError
from speedrun.model.counting import count_ngrams
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.model.ngram import NgramTable
from speedrun.optim.averaging import WeightAverage
from speedrun.optim.groups import build_optimizers
from speedrun.ranks import Ranks
from speedrun.train.log import RunLog
from speedrun.train.pace import Pace
from speedrun.train.step import Step
from speedrun.train.warmup import warm_up

STOP = -1.0
"""Progress that rank 0 broadcasts to end the run."""
ALWAYS_LOGGED_STEPS = 10
PILOT_SHARE = 40
"""Counting is tried on one part in so many of the text first."""


class SavesState(Protocol):
    """What the loop asks of checkpoints (`train.checkpoint.Checkpoints`)."""

    def save(
        self,
        step: int,
        model: GPT,
        optimizers: list[torch.optim.Optimizer],
        average: WeightAverage,
    ) -> None:
        """Write the state after `step` steps."""

    def restore(
        self, model: GPT, optimizers: list[torch.optim.Optimizer], average: WeightAverage
    ) -> int:
        """Load the last state, return its step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run leaves behind."""

    weights: dict[str, Tensor]
    """Averaged weights under the state dict's names, float32 on the CPU, and counted integers."""
    steps: int
    """Optimiser steps in them."""
    seconds: float
    """Budgeted seconds spent."""
    interrupted: bool
    """Whether a signal ended the run before the clock did."""


def train(
    run: RunConfig,
    batches: Batches,
    clock: Clock,
    ranks: Ranks,
    log: RunLog,
    *,
    checkpoints: SavesState | None = None,
    validate: Callable[[GPT, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train `run` until `clock`'s budget is spent, `train.max_steps` are done or `should_stop`.

    The budget is never exceeded: no step starts that might not fit, and a step that outlasts the
    budget all the same is thrown away with its time booked as discarded.

    Raises
        BudgetError: not even one step fits.
    """
    with clock.phase("set-up"):
        model = build_model(run.model, seed=run.seed).to(ranks.device)
        optimizers = build_optimizers(model, run.optim)
        average = WeightAverage(model, run.average.ema_decay, run.average.start_frac)
        step_once = Step(model, optimizers, run, ranks)
        log.line(f"model_params:{sum(p.numel() for p in model.parameters())}")
        log.line(step_once.description)
    with clock.phase("warm-up", steps=run.train.warmup_steps):
        pace = Pace(warm_up(model, optimizers, step_once, run, ranks))
        done = checkpoints.restore(model, optimizers, average) if checkpoints else 0
    if done:
        log.line(f"resumed:step:{done} train_time:{1000 * clock.elapsed_s:.0f}ms")
    elif not pace.fits(clock.remaining_s):
        raise BudgetError(
            f"a budget of {clock.budget_s:.3f} s does not hold one step of {pace.slowest_s:.3f} s; "
            "raise --budget or lower data.tokens_per_step"
        )

    interrupted = False
    kept: dict[str, Tensor] | None = None
    last_saved_s = last_validated_s = clock.elapsed_s
    if model.ngram is not None and not done:
        with clock.phase("count", on_budget=True) as booked:
            booked["tokens"] = _count(model.ngram, batches, run, clock)
            log.line(f"counted_tokens:{booked['tokens']} train_time:{1000 * clock.elapsed_s:.0f}ms")
    with clock.phase("train", on_budget=True) as booked:
        while True:
            interrupted = should_stop()
            may_go_on = (
                not interrupted and done < run.train.max_steps and pace.fits(clock.remaining_s)
            )
            # Every rank obeys rank 0's reading: with a clock each, learning rates would differ in
            # the last digits and the copies of the weights would drift apart.
            progress, is_risky = ranks.broadcast(
                max(clock.progress, done / run.train.max_steps) if may_go_on else STOP,
                pace.is_risky(clock.remaining_s),
            )
            if progress == STOP:
                break
            started_s = clock.elapsed_s
            kept = _copy(average.weights()) if is_risky else None
            inputs, targets = batches.for_rank(done, rank=ranks.rank, world=ranks.world)
            loss = step_once(inputs.to(ranks.device), targets.to(ranks.device), progress)
            average.update(progress)
            ranks.synchronize()
            elapsed_s = clock.elapsed_s
            if is_risky and ranks.broadcast(elapsed_s)[0] > clock.budget_s:
                clock.give_back(since_s=started_s)
                break
            kept = None
            done += 1
            booked["steps"] = done
            pace.record(elapsed_s - started_s)
            log.on_step(progress, elapsed_s, float(loss))
            if done <= ALWAYS_LOGGED_STEPS or done % run.train.log_every_steps == 0:
                _log_step(log, run, done, progress, float(loss), elapsed_s)
            if checkpoints and _is_due(run.train.checkpoint_every_s, elapsed_s, last_saved_s):
                last_saved_s = elapsed_s
                with clock.phase("checkpoint", step=done):
                    checkpoints.save(done, model, optimizers, average)
            if validate and _is_due(run.train.validate_every_s, elapsed_s, last_validated_s):
                last_validated_s = elapsed_s
                with clock.phase("validate", step=done):
                    validate(model, done)
    log.line(
        f"stopping_early: {'signal' if interrupted else 'wallclock_cap'} "
        f"train_time:{1000 * clock.elapsed_s:.0f}ms step:{done}/{run.train.max_steps}"
    )
    if interrupted and checkpoints:
        with clock.phase("checkpoint", step=done):
            checkpoints.save(done, model, optimizers, average)
    weights = _copy(average.weights() if kept is None else kept)
    return Trained(
        weights=weights | {name: buffer.cpu() for name, buffer in model.named_buffers()},
        steps=done,
        seconds=clock.elapsed_s,
        interrupted=interrupted,
    )


def _count(table: NgramTable, batches: Batches, run: RunConfig, clock: Clock) -> int:
    """Fill the table from the text that no batch shows; returns the tokens counted.

    A pilot measures this machine, so that counting keeps to its share of the budget.
    """
    stream = np.concatenate(batches.earlier)
    pilot = stream[-max(len(stream) // PILOT_SHARE, 1) :]
    started_s = clock.elapsed_s
    count_ngrams(pilot, run.count, run.model.vocab_size)
    per_token_s = (clock.elapsed_s - started_s) / len(pilot)
    affordable = int(run.count.budget_frac * clock.budget_s / per_token_s)
    counted = stream[-max(affordable, 1) :]
    table.fill(count_ngrams(counted, run.count, run.model.vocab_size))
    return len(counted)


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().float().cpu().clone() for name, tensor in weights.items()}


def _is_due(every_s: float, elapsed_s: float, last_s: float) -> bool:
    return every_s > 0 and elapsed_s - last_s >= every_s


def _log_step(
    log: RunLog, run: RunConfig, done: int, progress: float, nats: float, elapsed_s: float
) -> None:
    log.step(step=done, max_steps=run.train.max_steps, loss_nats=nats, elapsed_s=elapsed_s)
    log.metrics(
        step=done,
        progress=round(progress, 6),
        elapsed_s=round(elapsed_s, 6),
        tokens=done * run.data.tokens_per_step,
        train_nats=nats,
        time=time.time(),
    )
