"""The story of a run: warm up, step until the clock says stop, hand back the average."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.data.batches import Batches
from speedrun.data.feed import Feed
from speedrun.errors import BudgetError, CheckpointError, TrainError
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.optim.averaging import WeightAverage
from speedrun.optim.groups import build_optimizers
from speedrun.optim.muon import Muon
from speedrun.ranks import Ranks
from speedrun.train.choose import choose, rehearse_choice
from speedrun.train.count import count_in_time, rehearse
from speedrun.train.log import RunLog
from speedrun.train.norms import Norms
from speedrun.train.pace import Pace
from speedrun.train.replicas import check_replicas
from speedrun.train.step import Step
from speedrun.train.warmup import warm_up
from speedrun.train.word import Speaker, Word

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
    budget all the same is thrown away, with its time booked as discarded. All ranks call this, do
    what rank 0 says, and return the same weights; rank 0 alone writes.

    Raises
        BudgetError: not even one step fits.
        TrainError: the loss is NaN or infinite, or one sequence does not fit into memory.
        ReplicaError: the ranks' weights drifted apart.
        CheckpointError: the checkpoint is damaged, of another run, or not the same on all ranks.
    """
    with clock.phase("set-up"):
        model = build_model(run.model, seed=run.seed).to(ranks.device)
        optimizers = build_optimizers(model, run.optim, ranks)
        average = WeightAverage(model, run.average)
        if run.train.kernels != "off":
            from speedrun.train.fast_paths import settle_fast_paths

            for line in settle_fast_paths(run, ranks):
                log.line(line)
        step_once = Step(model, optimizers, run, ranks, log.line)
        state = _State(model, optimizers, average)
        log.line(
            f"train_batch_tokens:{run.data.tokens_per_step} "
            f"train_seq_len:{run.data.sequence_length} max_wallclock_seconds:{clock.budget_s:.3f}"
        )
        log.line(f"seed:{run.seed}")
        log.line(f"model_params:{sum(p.numel() for p in model.parameters())}")
        log.line(step_once.description)
    with clock.phase("warm-up", steps=run.train.warmup_steps):
        rehearsal_s = rehearse(run, clock) if model.ngram is not None else 0.0
        step_s = warm_up(model, optimizers, step_once, run, ranks, clock)
        choice_s = rehearse_choice(step_once, run, ranks, clock)
        pace = Pace(*ranks.broadcast(step_s, choice_s))
        restored = _restore(checkpoints, state, ranks)
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
    begun_s = last_validated_s = clock.elapsed_s
    kept = {name: tensor.clone() for name, tensor in average.weights().items()}
    speaker = Speaker(run.train, clock, ranks, pace, should_stop, can_save=checkpoints is not None)
    is_kept, taken = True, done
    feed = Feed(batches, rank=ranks.rank, world=ranks.world, device=ranks.device, step=done)
    with feed:
        # While the clock stands: a first step of another progress each time could not be repeated.
        word = Word(*ranks.broadcast(*speaker.speak(done)))
        with clock.phase("train", on_budget=True, steps=done) as booked:
            # From here on only kept steps are on the budget: no log line, stall or broken step.
            clock.keep(begun_s)
            norms = Norms(optimizers)
            while word.goes_on:
                is_logged = ranks.is_main and _is_logged(run, done + 1)
                if is_logged:
                    norms.remember()
                decided_s, progress = speaker.decided_s, word.progress
                inputs, targets = feed.next()
                say = partial(speaker.speak, done + 1)
                told = step_once(inputs, targets, progress, say)
                average.update(progress)
                # The only wait: for the device, and with it for the other ranks.
                nats, *said = told.tolist()
                taken += 1
                if not math.isfinite(nats):
                    raise TrainError(
                        f"step {taken}: the loss is {nats} nats, expected a number; lower the "
                        "learning rates (optim.*_lr) or set optim.grad_clip, then start a new run"
                    )
                elapsed_s = clock.elapsed_s
                pace.record(elapsed_s - decided_s)
                is_kept = elapsed_s <= clock.budget_s
                if is_kept:
                    done += 1
                    booked["steps"] = done
                    clock.keep(elapsed_s)
                    torch._foreach_copy_(list(kept.values()), list(average.weights().values()))
                    log.on_step(progress, elapsed_s, nats)
                    if is_logged:
                        measured = {"memory_bytes": ranks.peak_memory_bytes(), **norms.measure()}
                        _log_step(log, run, done, progress, nats, elapsed_s, measured)
                else:
                    booked["discarded_steps"] = booked.get("discarded_steps", 0) + 1
                # Alone, a step's end is the time to decide. In company all have heard already what
                # comes next, so a step that is late in the end is followed by one that is, too.
                word = Word(*said) if ranks.world > 1 else speaker.speak(done)
                if ranks.world > 1 and taken % run.train.log_every_steps == 0:
                    _check(model, ranks, taken, log)
                if word.saves:
                    _save(checkpoints if is_kept else None, done, state, ranks, clock)
                is_due = _is_due(run.train.validate_every_s, elapsed_s, last_validated_s)
                if validate and is_due and is_kept and ranks.is_main:
                    last_validated_s = elapsed_s
                    with clock.phase("validate", step=done):
                        validate(model, done)
            peak_bytes = max(ranks.collect(ranks.peak_memory_bytes()))
            booked["peak_memory_bytes"] = peak_bytes
        if ranks.world > 1:
            _check(model, ranks, taken, log)
            # Whether its last step was in time, only rank 0 knows.
            steps, was_kept = ranks.broadcast(done, is_kept)
            done, is_kept = int(steps), bool(was_kept)
            ranks.spread(kept.values())
        interrupted = bool(word.is_signalled and is_kept)
        if not done and not interrupted:
            raise _too_short(clock, pace)
        if run.average.choose == "best" and is_kept and not interrupted:
            last = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
            both = {"average": kept, "last": last}
            kept = choose(both, step_once, feed, run, ranks, clock, log)
    if interrupted or done < run.train.max_steps:
        log.line(
            f"stopping_early: {'signal' if interrupted else 'wallclock_cap'} "
            f"train_time:{1000 * clock.elapsed_s:.0f}ms step:{done}/{run.train.max_steps}"
        )
    log.line(f"peak memory allocated: {peak_bytes / 2**20:.0f} MiB")
    if interrupted:
        _save(checkpoints, done, state, ranks, clock)
    counts = dict(model.named_buffers())
    return Trained(
        weights={name: tensor.cpu() for name, tensor in (kept | counts).items()},
        steps=done,
        seconds=clock.elapsed_s,
        interrupted=interrupted,
    )


class _State(NamedTuple):
    """All that a checkpoint holds, besides the step."""

    model: GPT
    optimizers: list[torch.optim.Optimizer]
    average: WeightAverage


def _save(
    checkpoints: SavesState | None, done: int, state: _State, ranks: Ranks, clock: Clock
) -> None:
    """Save on rank 0 what all ranks know; all must call, even if rank 0 has no use for it."""
    for optimizer in state.optimizers:
        if isinstance(optimizer, Muon):
            optimizer.complete_state()
    if checkpoints and ranks.is_main:
        with clock.phase("checkpoint", step=done):
            checkpoints.save(done, *state)


def _restore(checkpoints: SavesState | None, state: _State, ranks: Ranks) -> int | None:
    """Load the last checkpoint on every rank; returns its step."""
    restored = checkpoints.restore(*state) if checkpoints else None
    steps = ranks.collect(-1 if restored is None else restored)
    if odd := [rank for rank, step in enumerate(steps) if step != steps[0]]:
        raise CheckpointError(
            f"rank {odd[0]} finds the checkpoint of another step than rank 0; with several "
            "machines --resume needs a run folder that all of them see"
        )
    return restored


def _check(model: GPT, ranks: Ranks, step: int, log: RunLog) -> None:
    found = check_replicas(model.parameters(), ranks, step)
    log.line(f"replicas:{ranks.world} step:{step} checksum:{found}")


def _too_short(clock: Clock, pace: Pace) -> BudgetError:
    counted = f", of which {clock.elapsed_s:.3f} s are spent," if clock.elapsed_s else ""
    return BudgetError(
        f"a budget of {clock.budget_s:.3f} s{counted} does not hold one step of "
        f"{pace.slowest_s:.3f} s; raise --budget or lower data.tokens_per_step"
    )


def _is_due(every_s: float, elapsed_s: float, last_s: float) -> bool:
    return every_s > 0 and elapsed_s - last_s >= every_s


def _is_logged(run: RunConfig, step: int) -> bool:
    return step <= ALWAYS_LOGGED_STEPS or step % run.train.log_every_steps == 0


def _log_step(
    log: RunLog,
    run: RunConfig,
    done: int,
    progress: float,
    nats: float,
    elapsed_s: float,
    measured: Mapping[str, Any],
) -> None:
    log.step(step=done, max_steps=run.train.max_steps, loss_nats=nats, elapsed_s=elapsed_s)
    log.metrics(
        step=done,
        progress=round(progress, 6),
        elapsed_s=round(elapsed_s, 6),
        tokens=done * run.data.tokens_per_step,
        train_nats=nats,
        time=time.time(),
        **measured,
    )
