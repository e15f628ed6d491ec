"""Checks of one log on its own. One function per check; each yields findings and never raises."""

from __future__ import annotations

from collections.abc import Iterator

from speedrun.tracks.load import Track
from speedrun.verify.forensics import check_scores, check_times
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, finding_in

Findings = Iterator[Finding]


def check_log(log: Log, track: Track | None, hardware: str = "") -> Findings:
    """Everything that one log shows; limits only where the track is known."""
    if track is not None:
        yield from check_times.training_time(log, track)
        yield from check_times.calibration_time(log, track)
        yield from check_times.evaluation_time(log, track, hardware)
        yield from check_times.speed(log, track)
        yield from size(log, track)
    for check in (check_times.order, check_times.step_times, check_times.throughput):
        yield from check(log)
    for check in (size_sum, seed_name, missing_lines, admissions):
        yield from check(log)
    if track is None or track.fingerprint.validation_bytes:
        yield from check_scores.check_scores(log)


def size(log: Log, track: Track) -> Findings:
    """V9: code and packed weights together stay within the cap."""
    if log.total is not None and log.total.bytes > track.cap_bytes:
        yield finding_in(log, "size", Severity.BROKEN)(
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
            yield finding_in(log, "size-sum", Severity.CONTRADICTION)(
                line=total.line,
                found=f"a total of {total.bytes:,} bytes",
                expected=f"{models[-1].bytes:,} + {codes[-1]:,} = {models[-1].bytes + codes[-1]:,}",
                sentence=f"the total is not the model of line {models[-1].line} and the code",
            )


def seed_name(log: Log) -> Findings:
    """The seed in the text is the seed in the file's name."""
    written, named = log.written_seed, log.name_seed
    if written is not None and named is not None and named[1] and int(written.value) != named[0]:
        yield finding_in(log, "seed-name", Severity.CONTRADICTION)(
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
        yield finding_in(log, "missing-lines", Severity.LOOK)(
            line=1,
            found=f"no {', no '.join(missing)}",
            expected="all of them",
            sentence="what is missing could not be checked",
        )
    first = log.steps[0] if log.steps else None
    resumed = next((resume for resume in log.resumes if first and resume[1] < first.line), None)
    if first is not None and resumed is not None:
        yield finding_in(log, "partial-run", Severity.LOOK)(
            line=resumed[1],
            found=resumed[0],
            expected="a run from its first step",
            sentence=f"training resumes at step {first.step:,}; what came before is not in this "
            "log",
        )


def admissions(log: Log) -> Findings:
    """Lines that speak of training or calibrating on validation text."""
    for text, line in log.admissions[:3]:
        yield finding_in(log, "validation-use", Severity.LOOK)(
            line=line,
            found=text.strip()[:100],
            expected="validation text is scored only",
            sentence="the log speaks of validation text in training or calibration",
        )
