"""Checks of times and steps: budgets, and whether a log's own arithmetic adds up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from speedrun.tracks.load import Track
from speedrun.verify.forensics.figures import Figure
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, Stage, Step, finding_in

Findings = Iterator[Finding]

PEAK_FLOPS = 1.979e15
"""Of one H100 SXM in fp8 without sparsity (NVIDIA's data sheet): no step can be faster."""
_TIMING_SLACK_MS = 2.0
"""Between two readings of the clock for one line."""


def training_time(log: Log, track: Track) -> Findings:
    """V7: training ends within the track's budget, and no step is made after it."""
    broken = finding_in(log, "training-time", Severity.BROKEN)
    spent, limit_ms = log.train_ms, 1000 * track.train_seconds
    if spent is not None and spent.value - spent.half > limit_ms:
        over_ms = spent.value - limit_ms
        pace = log.step_ms.value if log.step_ms else 0.0
        why = "the step that was running at the limit was finished"
        if not pace or over_ms > pace:
            why = f"that is {over_ms / pace:,.1f} steps" if pace else "by the log's own clock"
        yield broken(
            line=spent.line,
            found=f"{seconds(spent)} of training",
            expected=f"at most {track.train_seconds:,.0f} s",
            sentence=f"{over_ms / 1000:,.3f} s over the budget of {track.name}: {why}",
        )
    if log.stop is not None:
        late = [s for s in log.steps if s.line > log.stop.line and s.step > log.stop.step]
        if late:
            yield finding_in(log, "steps-after-stop", Severity.BROKEN)(
                line=late[0].line,
                found=f"step {late[0].step:,}",
                expected=f"none after step {log.stop.step:,}",
                sentence=f"{len(late)} lines of training follow the stop at line {log.stop.line}",
            )


def calibration_time(log: Log, track: Track) -> Findings:
    """V7: what reads training data for quantisation is on the budget too."""
    if log.train_ms is None or log.self_generated:
        return
    # What was collected before the clock stopped is in its time already.
    after = [figure for figure in log.calibrations_s if figure.line > log.train_ms.line]
    spent = log.train_ms.value / 1000 + sum(figure.value for figure in after)
    slack = log.train_ms.half / 1000 + sum(figure.half for figure in after)
    if (
        not after
        or log.train_ms.value / 1000 > track.train_seconds
        or spent - slack <= track.train_seconds
    ):
        return
    # A script that reserves time for it says itself that calibration counts.
    reserve = log.number("gptq_reserve_seconds")
    severity = Severity.BROKEN if reserve is not None else Severity.LOOK
    why = "the log does not say whose text it reads"
    if reserve is not None:
        why = f"{reserve.value:g} s were reserved for it (line {reserve.line})"
    collected = " + ".join(f"{figure.value:g}" for figure in after)
    yield finding_in(log, "calibration-time", severity)(
        line=after[0].line,
        found=f"{seconds(log.train_ms)} of training + {collected} s of calibration",
        expected=f"at most {track.train_seconds:,.0f} s together",
        sentence=f"{spent - track.train_seconds:,.1f} s over the budget with what reads "
        f"calibration text; {why}",
    )


def evaluation_time(log: Log, track: Track, hardware: str) -> Findings:
    """V8: the scoring pass fits its own budget."""
    times = [figure.scaled(1000) for figure in log.eval_totals_s]
    times += [s.eval_ms for s in log.scores if s.eval_ms and s.stage is Stage.PACKED]
    slowest = max(times, key=lambda time: time.value, default=None)
    if slowest is None or slowest.value - slowest.half <= 1000 * track.eval_seconds:
        return
    yield finding_in(log, "evaluation-time", overrun_severity(track, hardware))(
        line=slowest.line,
        found=f"{seconds(slowest)} of evaluation",
        expected=f"at most {track.eval_seconds:,.0f} s",
        sentence=overrun_reason(track, hardware),
    )


def overrun_severity(track: Track, hardware: str) -> Severity:
    """On lesser hardware than the track's, a slow evaluation proves nothing."""
    return Severity.LOOK if _is_lesser(track, hardware) else Severity.BROKEN


def overrun_reason(track: Track, hardware: str) -> str:
    """Why an evaluation that is too long weighs what it does."""
    if _is_lesser(track, hardware):
        return f"it ran on {hardware[:80]!r}; {track.num_gpus} devices may be faster"
    return f"scoring takes longer than {track.name} allows"


def _is_lesser(track: Track, hardware: str) -> bool:
    return bool(hardware) and not re.search(rf"\b{max(track.num_gpus, 1)}\s?[x\u00d7]", hardware)


def speed(log: Log, track: Track) -> Findings:
    """No log shows more arithmetic per second than the track's hardware has."""
    tokens, params = log.count("train_batch_tokens"), log.count("model_params")
    if not (tokens and params and log.step_ms and "H100" in track.hardware):
        return
    num_gpus = log.count("world_size") or Figure(track.num_gpus, 0.0, 0)
    rate = tokens.value / (log.step_ms.value / 1000) if log.step_ms.value > 0 else float("inf")
    needed, there = 6 * params.value * rate, PEAK_FLOPS * max(num_gpus.value, 1)
    if needed > there:
        yield finding_in(log, "speed", Severity.CONTRADICTION)(
            line=log.step_ms.line,
            found=f"{rate:,.0f} tokens/s with {params.value:,.0f} parameters",
            expected=f"at most {there / (6 * params.value):,.0f} on {num_gpus.value:.0f} H100",
            sentence="six operations per parameter and token are more than the devices have: "
            "steps, tokens per step or times are not real",
        )


def order(log: Log) -> Findings:
    """Steps and times never run backwards, and no step is beyond the last one planned."""
    moves = [(step.step, step.time_ms, step.line) for step in log.steps]
    if log.stop is not None:
        moves.append((log.stop.step, log.stop.time_ms, log.stop.line))
        moves.sort(key=lambda move: move[2])
    back = [(a, b) for a, b in pairwise(moves) if b[0] < a[0]]
    if back:
        (step, _, line), (next_step, _, next_line) = back[0]
        is_resumed = any(line < resume[1] < next_line for resume in log.resumes)
        severity = Severity.LOOK if is_resumed else Severity.CONTRADICTION
        why = "training was resumed" if is_resumed else "two runs in one log, or lines moved"
        yield finding_in(log, "steps-backwards", severity)(
            line=next_line,
            found=f"step {next_step:,}",
            expected=f"step {step:,} or later, as in line {line}",
            sentence=f"steps go back {len(back)} times: {why}",
        )
    timed = [(time, line) for _, time, line in moves if time is not None]
    slow = [(a, b) for (a, _), (b, _) in pairwise(timed) if b.value + b.half < a.value - a.half]
    if slow and not back:
        yield finding_in(log, "time-backwards", Severity.CONTRADICTION)(
            line=slow[0][1].line,
            found=seconds(slow[0][1]),
            expected=f"{seconds(slow[0][0])} or later, as in line {slow[0][0].line}",
            sentence=f"training time goes back {len(slow)} times",
        )
    beyond = [step for step in log.steps if step.of and step.step > step.of]
    if beyond:
        yield finding_in(log, "steps-beyond", Severity.CONTRADICTION)(
            line=beyond[0].line,
            found=f"step {beyond[0].step:,}",
            expected=f"at most {beyond[0].of:,}",
            sentence="a step is later than the last one planned",
        )


def step_times(log: Log) -> Findings:
    """Milliseconds per step times steps are the training time.

    An average may leave out the first ten steps, or be of the steps since the line before.
    """
    wrong = []
    last: Step | None = None
    for step in log.steps:
        if step.step and step.average_ms is not None and step.time_ms is not None:
            product = step.average_ms.scaled(step.step)
            spans = [(step.step, step.time_ms.value), (step.step - 10, step.time_ms.value)]
            if last is not None and last.time_ms is not None:
                spans.append((step.step - last.step, step.time_ms.value - last.time_ms.value))
            slack = step.time_ms.half + _TIMING_SLACK_MS
            if not any(
                abs(step.average_ms.value * steps - ms) <= slack + step.average_ms.half * steps
                for steps, ms in spans
                if steps > 0
            ):
                wrong.append((step, product))
        if step.train_nats is not None:
            last = step
    if wrong:
        step, product = wrong[0]
        assert step.time_ms is not None and step.average_ms is not None
        yield finding_in(log, "step-times", Severity.CONTRADICTION)(
            line=step.line,
            found=f"{step.time_ms.value:,.0f} ms after {step.step:,} steps",
            expected=f"{product.value:,.0f} ms at {step.average_ms.value:g} ms a step",
            sentence=f"time and average do not fit in {len(wrong)} of {len(log.steps)} step lines",
        )


def throughput(log: Log) -> Findings:
    """Tokens per step times steps, by the tokens per second shown, are the training time."""
    batch = log.count("train_batch_tokens")
    if batch is None:
        return
    wrong = []
    last = (0, 0.0)
    for step in log.steps:
        if not (step.tokens_per_s and step.time_ms and step.tokens_per_s.value > 0):
            continue
        ms_per_step = 1000 * batch.value / step.tokens_per_s.value
        now = (step.step, step.time_ms.value)
        # The speed so far, or since the line before.
        off = [
            abs((now[0] - then[0]) * ms_per_step - (now[1] - then[1])) - factor * step.time_ms.half
            for then, factor in (((0, 0.0), 1), (last, 2))
        ]
        if min(off) > 0.01 * step.step * ms_per_step:
            wrong.append((step, step.step * ms_per_step))
        last = now
    if wrong:
        step, expected_ms = wrong[0]
        assert step.time_ms is not None and step.tokens_per_s is not None
        yield finding_in(log, "throughput", Severity.CONTRADICTION)(
            line=step.line,
            found=f"{seconds(step.time_ms)} for {step.step:,} steps",
            expected=f"{expected_ms / 1000:,.1f} s at {step.tokens_per_s.value:,.0f} tokens/s",
            sentence=f"steps of {batch.value:,.0f} tokens, speed and time do not fit in "
            f"{len(wrong)} lines",
        )
    rates = [s for s in log.steps if s.tokens_per_s and s.step]
    if wrong or not rates or log.stop is None or log.stop.time_ms.value <= 0:
        return
    # The stop line has milliseconds where the step lines have tenths of a minute.
    end = rates[-1]
    assert end.tokens_per_s is not None
    then_ms = 1000 * end.step * batch.value / max(end.tokens_per_s.value, 1e-9)
    steps, spent_ms = log.stop.step - end.step, log.stop.time_ms.value - then_ms
    if steps <= 0:
        return
    before_ms = then_ms / end.step
    if not 0.4 * before_ms <= spent_ms / steps <= 2.5 * before_ms:
        yield finding_in(log, "throughput", Severity.CONTRADICTION)(
            line=log.stop.line,
            found=f"{spent_ms / steps:,.1f} ms a step for the last {steps:,} steps",
            expected=f"about {before_ms:,.1f} ms, as up to line {end.line}",
            sentence="the time of the stop does not fit the speed that was logged before it",
        )


def seconds(figure: Figure) -> str:
    """A time in milliseconds, for people."""
    digits = 3 if figure.half < 50 else 0
    return f"{figure.value / 1000:,.{digits}f} s"
