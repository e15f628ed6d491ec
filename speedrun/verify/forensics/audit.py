"""Audits a record, a tree of records or one log: reads, asks every check, and reports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from speedrun import settings
from speedrun.tracks.load import FOLDER, Track, load_track
from speedrun.verify.forensics.check_claims import check_claims, flags, hardware_of
from speedrun.verify.forensics.check_logs import check_log
from speedrun.verify.forensics.check_seeds import (
    code_sizes,
    copies,
    runs_of,
    seeds,
    settings_differ,
)
from speedrun.verify.forensics.claims import Claims
from speedrun.verify.forensics.dialects import admission
from speedrun.verify.forensics.findings import Audit, Finding, Report, Severity, clean
from speedrun.verify.forensics.folders import Record, Walk
from speedrun.verify.forensics.log import Log

_WEIGHT = {severity: weight for weight, severity in enumerate(Severity)}


def audit(path: Path, track: Track | None = None) -> Audit:
    """Read published logs and claims at or below `path`, and judge them by their own figures.

    Args:
        path: A record's folder, a folder of such folders at any depth, or one log.
        track: Limits to judge by; without it those of the track that each record names.

    Raises
        SubmissionError: there is nothing at `path`.
    """
    walk = Walk(path)
    reports = sorted(
        (audit_record(record, track) for record in walk.records()), key=lambda r: r.record
    )
    notes = tuple(clean(note, 400) for note in walk.notes)
    return Audit(path=clean(str(path)), reports=tuple(reports), notes=notes)


def audit_record(record: Record, track: Track | None = None) -> Report:
    """Ask every check about one record."""
    text = track_text(record)
    track = track or track_named(text)
    findings = list(record.findings)
    findings += _whole(record, track, text)
    hardware = next((found for c in record.claims if (found := hardware_of(c))), "")
    runs = runs_of(record.logs)
    for log in runs:
        findings += check_log(log, track, hardware)
    findings += copies(record.logs)
    findings += code_sizes(runs)
    findings += settings_differ(runs)
    findings += on_disk(record, runs, track)
    for claims in record.claims:
        own = runs_for(claims, record.claims, runs)
        findings += check_claims(claims, own, track, list(record.sizes.values()))
        findings += seeds(own, claims, track, text)
        findings += flags(claims, findings)
    if not record.claims and not record.is_single_log:
        findings += seeds(runs, None, track, text)
    findings.sort(key=lambda finding: (_WEIGHT[finding.severity], finding.file, finding.line))
    return Report(
        record=clean(record.name),
        track=track.name if track else "",
        logs=tuple(clean(log.name) for log in record.logs),
        claims=tuple(clean(claims.name) for claims in record.claims),
        findings=tuple(dict.fromkeys(findings)),
    )


def track_text(record: Record) -> str:
    """What a record says about its track: in its claim, else in the names of folders above it."""
    for claims in record.claims:
        leaf = claims.get("track")
        if leaf is not None and isinstance(leaf.value, str):
            return leaf.value
    return folder_text(record)


def folder_text(record: Record) -> str:
    """The name of the nearest folder above a record that names a track; empty if none does."""
    above = [parent.name for parent in record.folder.resolve().parents[:2]]
    return next((name for name in above if track_named(name) is not None), "")


def track_named(text: str) -> Track | None:
    """The shipped track that somebody's words mean; None if that is not clear."""
    words = text.lower().replace("_", "-")
    if words in settings.list_names(FOLDER):
        return load_track(words)
    if re.search(r"non-?record|unlimited", words):
        return load_track("golf-unlimited-16mb")
    return load_track("golf-10min-16mb") if re.search(r"10-?min", words) else None


def runs_for(claims: Claims, every: list[Claims], runs: list[Log]) -> list[Log]:
    """`submission_ternary.json` speaks of the logs with `ternary` in their names, if there are."""
    match = re.fullmatch(r"submission[_-](\w+)\.json", claims.name.rsplit("/", 1)[-1])
    if len(every) < 2 or match is None:
        return runs
    return [run for run in runs if match[1].lower() in run.name.lower()] or runs


def _whole(record: Record, track: Track | None, text: str) -> Iterator[Finding]:
    """What is wrong with the record as such."""
    if track is None:
        yield Finding(
            id="track-unknown",
            severity=Severity.UNDECIDED,
            file=record.claims[0].name if record.claims else ".",
            line=0,
            found=f"track {text!r}" if text else "no track named",
            expected=", ".join(settings.list_names(FOLDER)),
            sentence="budgets, cap and seeds were not judged; give --track",
        )
    elsewhere = folder_text(record)
    filed, claimed = track_named(elsewhere), track_named(text)
    if filed is not None and claimed is not None and filed.name != claimed.name:
        yield Finding(
            id="track-differs",
            severity=Severity.LOOK,
            file=record.claims[0].name,
            line=1,
            found=f"track {text!r}",
            expected=f"{filed.name}, as the folder {elsewhere!r} says",
            sentence="it is judged by the track that it claims, which has other limits",
        )
    if record.claims and not record.logs:
        yield Finding(
            id="no-log",
            severity=Severity.UNDECIDED,
            file=".",
            line=0,
            found="no log",
            expected="one for every seed",
            sentence="nothing backs the claims",
        )
    if not record.claims and not record.is_single_log:
        yield Finding(
            id="no-claim",
            severity=Severity.LOOK,
            file=".",
            line=0,
            found="no submission*.json that can be read",
            expected="one",
            sentence="there is no claim to compare the logs with",
        )
    if not record.is_single_log and (words := admission(record.folder.resolve().name)):
        yield Finding(
            id="validation-use",
            severity=Severity.LOOK,
            file=".",
            line=0,
            found=f"{words!r} in the folder's name",
            expected="validation text is scored only",
            sentence="the name speaks of validation text in training or calibration",
        )


def on_disk(record: Record, runs: list[Log], track: Track | None) -> Iterator[Finding]:
    """V9: code and weights in the folder are those that the logs and the claim count."""
    named = {
        part: {float(size.bytes) for run in runs for size in run.sizes if size.part == part}
        | {c.figure.value for claims in record.claims for c in claims.figures if c.kind == part}
        for part in ("code", "model", "total")
    }
    code = next((size for name, size in record.sizes.items() if name.endswith(".py")), None)
    models = {name: size for name, size in record.sizes.items() if not name.endswith(".py")}
    if code is not None and named["code"] and code not in named["code"]:
        nearest = min(named["code"], key=lambda size: abs(size - code))
        yield Finding(
            id="code-on-disk",
            severity=Severity.LOOK,
            file="train_gpt.py",
            line=0,
            found=f"{code:,} bytes",
            expected=f"{nearest:,.0f}, as logged or claimed",
            sentence="the script in the folder is not the one that was counted",
        )
    for name, size in models.items():
        if named["model"] and size not in named["model"]:
            nearest = min(named["model"], key=lambda other: abs(other - size))
            yield Finding(
                id="model-on-disk",
                severity=Severity.CONTRADICTION,
                file=name,
                line=0,
                found=f"{size:,} bytes",
                expected=f"{nearest:,.0f}, as logged or claimed",
                sentence="the weights in the folder are not those that were counted",
            )
        # Readable code may lie beside what was counted, so a stranger's size proves less.
        is_counted = code is None or code in named["code"] or not named["code"]
        counted = min(named["code"], default=0.0) if is_counted and named["code"] else code or 0
        if track is not None and size + counted > track.cap_bytes:
            yield Finding(
                id="size-on-disk",
                severity=Severity.BROKEN if is_counted else Severity.CONTRADICTION,
                file=name,
                line=0,
                found=f"{size:,} + {counted:,.0f} bytes of code",
                expected=f"at most {track.cap_bytes:,}",
                sentence=f"{size + counted - track.cap_bytes:,.0f} bytes over the cap",
            )
