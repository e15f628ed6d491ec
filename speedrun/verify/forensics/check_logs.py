"""Checks of one log on its own: budgets, arithmetic, sizes and what its scores say about bytes.

One function per check; each yields findings and never raises for what a log holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from speedrun.tracks.load import Track
from speedrun.verify.forensics import splits
from speedrun.verify.forensics.figures import Figure, bytes_per_token
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, Score, Stage
from speedrun.verify.forensics.splits import NUM_DOCUMENTS, TOLERANCE, Split

Findings = Iterator[Finding]

PEAK_FLOPS = 1.979e15
"""Of one H100 SXM in fp8 without sparsity (NVIDIA's data sheet): no step can be faster."""
_TIMING_SLACK_MS = 2.0
"""Between two readings of the clock for one line."""


def check_log(log: Log, track: Track | None, hardware: str = "") -> Findings:
    """Everything that one log shows; limits only where the track is known."""
    if track is not None:
        yield from training_time(log, track)
        yield from calibration_time(log, track)
        yield from evaluation_time(log, track, hardware)
        yield from size(log, track)
        yield from speed(log, track)
    for check in (order, step_times, throughput, size_sum, seed_name, missing_lines, admissions):
        yield from check(log)
    if track is None or track.fingerprint.validation_bytes:
        for metric in (training_files, subset, validation_split, byte_count, one_count):
            yield from metric(log)


def _finding(log: Log, id: str, severity: Severity) -> Callable[..., Finding]:
    return partial(Finding, id=id, severity=severity, file=log.name)


def seconds(figure: Figure) -> str:
    """A time in milliseconds, for people."""
    digits = 3 if figure.half < 50 else 0
    return f"{figure.value / 1000:,.{digits}f} s"


def training_time(log: Log, track: Track) -> Findings:
    """V7: training ends within the track's budget, and no step is made after it."""
    broken = _finding(log, "training-time", Severity.BROKEN)
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
            yield _finding(log, "steps-after-stop", Severity.BROKEN)(
                line=late[0].line,
                found=f"step {late[0].step:,}",
                expected=f"none after step {log.stop.step:,}",
                sentence=f"{len(late)} lines of training follow the stop at line {log.stop.line}",
            )


def calibration_time(log: Log, track: Track) -> Findings:
    """V7: what reads training data for quantisation is on the budget too."""
    if log.train_ms is None or not log.calibrations_s or log.self_generated:
        return
    spent = log.train_ms.value / 1000 + sum(f.value for f in log.calibrations_s)
    slack = log.train_ms.half / 1000 + sum(f.half for f in log.calibrations_s)
    if log.train_ms.value / 1000 > track.train_seconds or spent - slack <= track.train_seconds:
        return
    # A script that reserves time for it says itself that calibration counts.
    reserve = log.number("gptq_reserve_seconds")
    severity = Severity.BROKEN if reserve is not None else Severity.LOOK
    why = "the log does not say whose text it reads"
    if reserve is not None:
        why = f"{reserve.value:g} s were reserved for it (line {reserve.line})"
    collected = " + ".join(f"{figure.value:g}" for figure in log.calibrations_s)
    yield _finding(log, "calibration-time", severity)(
        line=log.calibrations_s[0].line,
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
    yield _finding(log, "evaluation-time", overrun_severity(track, hardware))(
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


def size(log: Log, track: Track) -> Findings:
    """V9: code and packed weights together stay within the cap."""
    if log.total is not None and log.total.bytes > track.cap_bytes:
        yield _finding(log, "size", Severity.BROKEN)(
            line=log.total.line,
            found=f"{log.total.bytes:,} bytes",
            expected=f"at most {track.cap_bytes:,}",
            sentence=f"{log.total.bytes - track.cap_bytes:,} bytes over the cap of {track.name}",
        )


def size_sum(log: Log) -> Findings:
    """A logged total is the sum of a logged model and a logged code size."""
    codes = [size.bytes for size in log.sizes if size.part == "code"]
    for total in (size for size in log.sizes if size.part == "total" and size.tag != "budget"):
        models = [
            size
            for size in log.sizes
            if size.part == "model" and (size.tag == total.tag or size.line == total.line)
        ]
        if not models or not codes or total is not log.total:
            continue
        if not any(m.bytes + code == total.bytes for m in models for code in codes):
            yield _finding(log, "size-sum", Severity.CONTRADICTION)(
                line=total.line,
                found=f"a total of {total.bytes:,} bytes",
                expected=f"{models[-1].bytes:,} + {codes[-1]:,} = {models[-1].bytes + codes[-1]:,}",
                sentence=f"the total is not the model of line {models[-1].line} and the code",
            )


def speed(log: Log, track: Track) -> Findings:
    """No log shows more arithmetic per second than the track's hardware has."""
    tokens, params = log.count("train_batch_tokens"), log.count("model_params")
    if not (tokens and params and log.step_ms and "H100" in track.hardware):
        return
    num_gpus = log.count("world_size") or Figure(track.num_gpus, 0.0, 0)
    rate = tokens.value / (log.step_ms.value / 1000) if log.step_ms.value > 0 else float("inf")
    needed, there = 6 * params.value * rate, PEAK_FLOPS * max(num_gpus.value, 1)
    if needed > there:
        yield _finding(log, "speed", Severity.CONTRADICTION)(
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
        yield _finding(log, "steps-backwards", Severity.CONTRADICTION)(
            line=next_line,
            found=f"step {next_step:,}",
            expected=f"step {step:,} or later, as in line {line}",
            sentence=f"steps go back {len(back)} times: two runs in one log, or lines moved",
        )
    timed = [(time, line) for _, time, line in moves if time is not None]
    slow = [(a, b) for (a, _), (b, _) in pairwise(timed) if b.value + b.half < a.value - a.half]
    if slow and not back:
        yield _finding(log, "time-backwards", Severity.CONTRADICTION)(
            line=slow[0][1].line,
            found=seconds(slow[0][1]),
            expected=f"{seconds(slow[0][0])} or later, as in line {slow[0][0].line}",
            sentence=f"training time goes back {len(slow)} times",
        )
    beyond = [step for step in log.steps if step.of and step.step > step.of]
    if beyond:
        yield _finding(log, "steps-beyond", Severity.CONTRADICTION)(
            line=beyond[0].line,
            found=f"step {beyond[0].step:,}",
            expected=f"at most {beyond[0].of:,}",
            sentence="a step is later than the last one planned",
        )


def step_times(log: Log) -> Findings:
    """Milliseconds per step times steps are the training time."""
    wrong = []
    for step in log.steps:
        if step.step and step.average_ms is not None and step.time_ms is not None:
            product = step.average_ms.scaled(step.step)
            slack = product.half + step.time_ms.half + _TIMING_SLACK_MS
            if abs(product.value - step.time_ms.value) > slack:
                wrong.append((step, product))
    if wrong:
        step, product = wrong[0]
        assert step.time_ms is not None and step.average_ms is not None
        yield _finding(log, "step-times", Severity.CONTRADICTION)(
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
    for step in log.steps:
        if not (step.tokens_per_s and step.time_ms and step.tokens_per_s.value > 0):
            continue
        expected_ms = 1000 * step.step * batch.value / step.tokens_per_s.value
        if abs(expected_ms - step.time_ms.value) > step.time_ms.half + 0.01 * expected_ms:
            wrong.append((step, expected_ms))
    if wrong:
        step, expected_ms = wrong[0]
        assert step.time_ms is not None and step.tokens_per_s is not None
        yield _finding(log, "throughput", Severity.CONTRADICTION)(
            line=step.line,
            found=f"{seconds(step.time_ms)} for {step.step:,} steps",
            expected=f"{expected_ms / 1000:,.1f} s at {step.tokens_per_s.value:,.0f} tokens/s",
            sentence=f"steps of {batch.value:,.0f} tokens, speed and time do not fit in "
            f"{len(wrong)} lines",
        )
    last = log.steps[-1] if log.steps else None
    rates = [s for s in log.steps if s.tokens_per_s and s.step]
    if wrong or not rates or last is None or log.stop is None or log.stop.time_ms.value <= 0:
        return
    # The stop line has milliseconds where the step lines have tenths of a minute.
    end = rates[-1]
    assert end.tokens_per_s is not None
    then_ms = 1000 * end.step * batch.value / max(end.tokens_per_s.value, 1e-9)
    steps, spent_ms = log.stop.step - end.step, log.stop.time_ms.value - then_ms
    if steps <= 0:
        return
    before_ms = then_ms / end.step
    if not 0.5 * before_ms <= spent_ms / steps <= 4 * before_ms:
        yield _finding(log, "throughput", Severity.CONTRADICTION)(
            line=log.stop.line,
            found=f"{spent_ms / steps:,.1f} ms a step for the last {steps:,} steps",
            expected=f"about {before_ms:,.1f} ms, as up to line {end.line}",
            sentence="the time of the stop does not fit the speed that was logged before it",
        )


def seed_name(log: Log) -> Findings:
    """The seed in the text is the seed in the file's name."""
    written, named = log.written_seed, log.name_seed
    if written is not None and named is not None and named[1] and int(written.value) != named[0]:
        yield _finding(log, "seed-name", Severity.CONTRADICTION)(
            line=written.line,
            found=f"seed {written.value:.0f}",
            expected=f"seed {named[0]}, as the file's name says",
            sentence="the log is of another run than its name states",
        )


def missing_lines(log: Log) -> Findings:
    """What a complete log has and this one has not."""
    has = {
        "seed": log.written_seed is not None,
        "tokens per step": log.count("train_batch_tokens") is not None,
        "training steps": any(step.train_nats for step in log.steps),
        "training time": log.train_ms is not None,
        "size": log.total is not None,
        "score of packed weights": log.final is not None,
    }
    missing = [what for what, is_there in has.items() if not is_there]
    if missing:
        yield _finding(log, "missing-lines", Severity.LOOK)(
            line=1,
            found=f"no {', no '.join(missing)}",
            expected="all of them",
            sentence="what is missing could not be checked",
        )
    if log.resumed is not None:
        first = log.steps[0].step if log.steps else 0
        yield _finding(log, "partial-run", Severity.LOOK)(
            line=log.resumed[1],
            found=log.resumed[0],
            expected="a run from its first step",
            sentence=f"training resumes at step {first:,}; what came before is not in this log",
        )


def admissions(log: Log) -> Findings:
    """Lines that speak of training or calibrating on validation text."""
    for text, line in log.admissions[:3]:
        yield _finding(log, "validation-use", Severity.LOOK)(
            line=line,
            found=text.strip()[:100],
            expected="validation text is scored only",
            sentence="the log speaks of validation text in training or calibration",
        )


def training_files(log: Log) -> Findings:
    """V6: the files that are trained on are not the validation split."""
    text, line = log.settings.get("train_files", ("", 0))
    if re.search(r"(?<![A-Za-z])val(?:idation)?_(?:\d|\*)", text.rsplit("/", 1)[-1]):
        yield _finding(log, "trains-on-val", Severity.BROKEN)(
            line=line,
            found=f"train_files {text}",
            expected="training shards",
            sentence="the run trains on the text that it is scored on",
        )


def subset(log: Log) -> Findings:
    """V6: the whole validation split is scored."""
    broken = _finding(log, "subset", Severity.BROKEN)
    if log.limited is not None and log.final is not None and log.final.line > log.limited[1]:
        yield broken(
            line=log.limited[1],
            found=log.limited[0],
            expected="the whole validation split",
            sentence=f"the score of line {log.final.line} is of a part of the split, as the log "
            "says itself",
        )
    fraction = log.number("val_doc_fraction")
    if fraction is not None and fraction.value < 1:
        yield broken(
            line=fraction.line,
            found=f"val_doc_fraction {fraction.value:g}",
            expected="1",
            sentence="only a part of the validation documents is scored",
        )
    documents = log.validation_documents
    if documents is not None and documents.value < NUM_DOCUMENTS:
        yield broken(
            line=documents.line,
            found=f"{documents.value:,.0f} documents",
            expected=f"{NUM_DOCUMENTS:,}",
            sentence="only a part of the validation documents is scored",
        )


def log_split(log: Log) -> Split | None:
    """The published split that a log is about: by its tokens, else by its names."""
    if log.validation_tokens is not None:
        found = splits.by_tokens(log.validation_tokens.value, log.sequence_length)
        if found is not None:
            return found
    return named_split(log)


def named_split(log: Log) -> Split | None:
    """The published split that the paths of a log name."""
    keys = "tokenizer_path datasets_dir data_path train_loader val_files caseops_enabled dataset"
    texts = [f"{key}:{log.settings[key][0]}" for key in keys.split() if key in log.settings]
    return splits.named(" ".join(texts))


def validation_split(log: Log) -> Findings:
    """V6: the validation split has as many tokens as the published one."""
    tokens, named = log.validation_tokens, named_split(log)
    if tokens is None:
        return
    found = splits.by_tokens(tokens.value, log.sequence_length)
    if found is not None and found.note:
        published = next(split for split in splits.PUBLISHED if split.name == found.name)
        yield _finding(log, "validation-split", Severity.LOOK)(
            line=tokens.line,
            found=f"{tokens.value:,.0f} tokens",
            expected=f"{published.tokens:,} of {published.name}",
            sentence=f"{found.note}; scores on it are not comparable to the third digit",
        )
    elif named is not None and (found is None or found.name != named.name):
        is_part = tokens.value < named.tokens
        severity = Severity.BROKEN if is_part else Severity.LOOK
        part = f"{tokens.value / named.tokens:.1%} of the split"
        yield _finding(log, "validation-split", severity)(
            line=tokens.line,
            found=f"{tokens.value:,.0f} tokens",
            expected=f"{named.tokens:,} of {named.name}",
            sentence=f"{part} is scored" if is_part else "this is not the published split",
        )


def byte_count(log: Log) -> Findings:
    """V5: nats, bpb and tokens of the final score give the bytes of the text, no more."""
    score = log.final
    ratio = bytes_per_token(score.nats, score.bpb) if score and score.nats else None
    if ratio is not None:
        yield from judge_ratio(log.name, ratio, log_split(log), log.validation_tokens)


def judge_ratio(
    file: str, ratio: Figure, split: Split | None, tokens: Figure | None = None
) -> Findings:
    """Compare bytes per token with the split's; without a split, with every published one."""
    slack = TOLERANCE + ratio.half / ratio.value
    if split is None and tokens is not None:
        # Any tokenizer: its tokens times its bytes per token are the bytes of the text.
        split = Split("the text itself", int(tokens.value), splits.PUBLISHED[0].bytes)
    if split is None:
        known = [s.bytes_per_token for s in (*splits.PUBLISHED, *splits.OTHER_EXPORTS)]
        if any(abs(ratio.value / other - 1) <= slack for other in (1.0, *known)):
            return
        fitting = next((b for o in known if (b := splits.bug(ratio.value / o))), "")
        yield Finding(
            id="byte-count",
            severity=Severity.LOOK,
            file=file,
            line=ratio.line,
            found=f"{ratio.value:.4f} bytes per token",
            expected="2.4359 (sp1024), 3.3197 (sp4096), 3.7266 (sp8192) or 3.1572 (caseops)",
            sentence="no published split has this quotient of val_loss / ln 2 and val_bpb"
            + (f"; it would fit {fitting}" if fitting else ""),
        )
        return
    off = ratio.value / split.bytes_per_token - 1
    if abs(off) <= slack:
        return
    fitting = splits.bug(1 + off)
    why = "the score is of another text or another count"
    if off > 0.01:
        why = fitting or "more bytes are counted than the text has"
    elif off < 0:
        why = "nats and bpb are not of this whole split"
    yield Finding(
        id="byte-count",
        severity=Severity.BROKEN if off > 0.01 else Severity.CONTRADICTION,
        file=file,
        line=ratio.line,
        found=f"{ratio.value:.4f} bytes per token",
        expected=f"{split.bytes_per_token:.4f} of {split.name}",
        sentence=f"{off:+.2%} against the published split: {why}",
    )


def one_count(log: Log) -> Findings:
    """Every score of a log counts the bytes of a token alike."""
    ratios = [(score, _ratio(score)) for score in log.scores]
    known = [(score, ratio) for score, ratio in ratios if ratio is not None]
    final = _ratio(log.final) if log.final else None
    if final is None or (log.limited is not None):
        return
    for score, ratio in known:
        slack = TOLERANCE + ratio.half / ratio.value + final.half / final.value
        if abs(ratio.value / final.value - 1) > slack:
            yield _finding(log, "one-count", Severity.CONTRADICTION)(
                line=score.line,
                found=f"{ratio.value:.4f} bytes per token",
                expected=f"{final.value:.4f}, as in the final score of line {final.line}",
                sentence="two scores of one log count the bytes of the text differently, or one "
                "of them was changed by hand",
            )
            return


def _ratio(score: Score) -> Figure | None:
    return bytes_per_token(score.nats, score.bpb) if score.nats else None
