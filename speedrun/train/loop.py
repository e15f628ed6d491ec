"""The story of a run: warm up, step until the clock says stop, hand back the average."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.data.batches import Batches
from speedrun.data.feed import Feed
from speedrun.errors import BudgetError, TrainError
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.optim.averaging import WeightAverage
from speedrun.optim.groups import build_optimizers
from speedrun.ranks import Ranks
from speedrun.train.count import count_in_time, rehearse
from speedrun.train.log import RunLog
from speedrun.train.pace import Pace
from speedrun.train.step import Step
from speedrun.train.warmup import warm_up

STOP = -1.0
"""Progress that rank 0 broadcasts to end the run."""
ALWAYS_LOGGED_STEPS = 10


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
    ) -> int | None:
        """Load the last state, return its step; None if there is none."""


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
    budget all the same is thrown away, with its time booked as discarded.

    Raises
        BudgetError: not even one step fits.
        TrainError: the loss is NaN or infinite.
    """
    with clock.phase("set-up"):
        model = build_model(run.model, seed=run.seed).to(ranks.device)
        optimizers = build_optimizers(model, run.optim)
        average = WeightAverage(model, run.average.ema_decay, run.average.start_frac)
        if run.train.kernels != "off":
            from speedrun.train.fast_paths import settle_fast_paths

            for line in settle_fast_paths(run, ranks):
                log.line(line)
        step_once = Step(model, optimizers, run, ranks)
        log.line(f"model_params:{sum(p.numel() for p in model.parameters())}")
        log.line(step_once.description)
    with clock.phase("warm-up", steps=run.train.warmup_steps):
        rehearsal_s = rehearse(run, clock) if model.ngram is not None else 0.0
        pace = Pace(*ranks.broadcast(warm_up(model, optimizers, step_once, run, ranks, clock)))
        restored = checkpoints.restore(model, optimizers, average) if checkpoints else None
    done = restored or 0
    if restored is not None:
        log.line(f"resumed:step:{done} train_time:{1000 * clock.elapsed_s:.0f}ms")
    if not done and not pace.fits(*ranks.broadcast(clock.remaining_s)):
        raise _too_short(clock, pace)

    if model.ngram is not None and restored is None:
        with clock.phase("count", on_budget=True) as booked:
            counted = count_in_time(model.ngram, batches.earlier, run, clock, ranks, rehearsal_s)
            booked["tokens"] = counted
            log.line(f"counted_tokens:{counted} train_time:{1000 * clock.elapsed_s:.0f}ms")
    begun_s = last_saved_s = last_validated_s = clock.elapsed_s
    kept = {name: tensor.clone() for name, tensor in average.weights().items()}
    feed = Feed(batches, rank=ranks.rank, world=ranks.world, device=ranks.device, step=done)
    with feed, clock.phase("train", on_budget=True, steps=done) as booked:
        # From here on only kept steps are on the budget: no log line, no stall, no broken step.
        clock.keep(begun_s)
        while True:
            may_go_on = done < run.train.max_steps and pace.fits(clock.remaining_s)
            # Every rank obeys rank 0's reading: with a clock each, learning rates would differ in
            # the last digits and the copies of the weights would drift apart.
            progress, is_signalled = ranks.broadcast(
                max(clock.progress, done / run.train.max_steps) if may_go_on else STOP,
                should_stop(),
            )
            if progress == STOP or is_signalled:
                break
            started_s = clock.elapsed_s
            inputs, targets = feed.next()
            loss = step_once(inputs, targets, progress)
            average.update(progress)
            ranks.synchronize()
            nats = float(loss)
            if not math.isfinite(nats):
                raise TrainError(
                    f"step {done + 1}: the loss is {nats} nats, expected a number; lower the "
                    "learning rates (optim.*_lr) or set optim.grad_clip, then start a new run"
                )
            (elapsed_s,) = ranks.broadcast(clock.elapsed_s)
            pace.record(elapsed_s - started_s)
            if elapsed_s > clock.budget_s:
                booked["discarded_steps"] = 1
                break
            done += 1
            booked["steps"] = done
            clock.keep(elapsed_s)
            torch._foreach_copy_(list(kept.values()), list(average.weights().values()))
            log.on_step(progress, elapsed_s, nats)
            if done <= ALWAYS_LOGGED_STEPS or done % run.train.log_every_steps == 0:
                _log_step(log, run, done, progress, nats, elapsed_s)
            if not ranks.is_main:
                continue
            if checkpoints and _is_due(run.train.checkpoint_every_s, elapsed_s, last_saved_s):
                last_saved_s = elapsed_s
                with clock.phase("checkpoint", step=done):
                    checkpoints.save(done, model, optimizers, average)
            if validate and _is_due(run.train.validate_every_s, elapsed_s, last_validated_s):
                last_validated_s = elapsed_s
                with clock.phase("validate", step=done):
                    validate(model, done)
    interrupted = bool(is_signalled)
    if not done and not interrupted:
        raise _too_short(clock, pace)
    if interrupted or done < run.train.max_steps:
        log.line(
            f"stopping_early: {'signal' if interrupted else 'wallclock_cap'} "
            f"train_time:{1000 * clock.elapsed_s:.0f}ms step:{done}/{run.train.max_steps}"
        )
    if interrupted and checkpoints and ranks.is_main:
        with clock.phase("checkpoint", step=done):
            checkpoints.save(done, model, optimizers, average)
    counts = dict(model.named_buffers())
    return Trained(
        weights={name: tensor.cpu() for name, tensor in (kept | counts).items()},
        steps=done,
        seconds=clock.elapsed_s,
        interrupted=interrupted,
    )


def _too_short(clock: Clock, pace: Pace) -> BudgetError:
    counted = f", of which {clock.elapsed_s:.3f} s are spent," if clock.elapsed_s else ""
    return BudgetError(
        f"a budget of {clock.budget_s:.3f} s{counted} does not hold one step of "
        f"{pace.slowest_s:.3f} s; raise --budget or lower data.tokens_per_step"
    )


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
