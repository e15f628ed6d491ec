"""Published folders as records: read by rule, whatever their dialect, and never believed.

Every folder below a path gives a record for each of its claims, or the reason why not. What a file
says in other words than ours is understood by `verify.forensics`; unknown keys are left alone,
missing ones stay empty. Figures are those of the claim; the logs fill in what it leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speedrun.errors import RecordError, SpeedrunError
from speedrun.files import atomic_path, write_atomic
from speedrun.records.record import RECORD_NAME, Record, SeedResult, Standing, to_json
from speedrun.tracks.load import Track
from speedrun.verify.forensics.audit import audit_record, runs_for, track_named, track_text
from speedrun.verify.forensics.check_claims import hardware_of
from speedrun.verify.forensics.check_seeds import runs_of
from speedrun.verify.forensics.claims import Claim, Claims
from speedrun.verify.forensics.evidence import Evidence
from speedrun.verify.forensics.figures import Figure
from speedrun.verify.forensics.findings import Severity, clean
from speedrun.verify.forensics.folders import Record as Folder
from speedrun.verify.forensics.folders import Walk
from speedrun.verify.forensics.log import Log

_DATE = re.compile(r"(\d{4}-\d\d-\d\d)")
_SUMMARY_CHARACTERS = 400
_WORST_BPB = 100.0
"""A score beyond is none: eight bits per byte is text that is not modelled at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One claim of one folder: the record that it gives, or the reason why it gives none."""

    place: str
    """Folder and file, below the path that was asked for."""
    folder: Path
    record: Record | None
    reason: str = ""


def import_records(path: Path, track: Track | None = None) -> Iterator[Imported]:
    """Read every published folder at or below `path`.

    Args:
        path: A folder, or a folder of such folders at any depth.
        track: What they are for; by default what each says of itself.

    Raises
        SubmissionError: there is nothing at `path`.
    """
    for found in Walk(path).records():
        if not found.claims:
            troubles = [finding.found for finding in found.findings] or ["no submission*.json"]
            reason = f"nobody claims anything: {troubles[0]}"
            yield Imported(place=found.name, folder=found.folder, record=None, reason=reason)
        for claims in found.claims:
            place = f"{found.name}/{claims.name}"
            try:
                record = _record(found, claims, track)
            except SpeedrunError as error:
                yield Imported(place=place, folder=found.folder, record=None, reason=str(error))
            else:
                yield Imported(place=place, folder=found.folder, record=record)


def write_imported(root: Path, imported: Imported, *, limit_bytes: int = 1_000_000) -> Path:
    """File an imported record under `root`, with the claim that it was read from.

    Returns the folder. Importing the same again changes nothing.

    Raises
        RecordError: there was no record, or another one has its name.
        OutputError: the folder cannot be written.
    """
    if imported.record is None:
        raise RecordError(f"{imported.place}: {imported.reason}")
    record = imported.record
    target = root / record.track / record.name
    if target.exists():
        if not (target / RECORD_NAME).is_file() or not _is_same(target, record):
            raise RecordError(f"{target} is there already, and another record")
        write_atomic(target / RECORD_NAME, to_json(record))
        return target
    claim = imported.folder / imported.place.rpartition("/")[2]
    with atomic_path(target) as folder:
        folder.mkdir(parents=True)
        (folder / RECORD_NAME).write_bytes(to_json(record))
        with claim.open("rb") as file:
            (folder / "submission.json").write_bytes(file.read(limit_bytes))
    return target


def _is_same(target: Path, record: Record) -> bool:
    from speedrun.records.record import read_record

    there = read_record(target)
    return (there.status, there.source) == (record.status, record.source)


def _record(found: Folder, claims: Claims, track: Track | None) -> Record:
    """One claim as a record.

    Raises
        RecordError: it names no track, date or score.
    """
    chosen = track or track_named(track_text(found))
    if chosen is None:
        raise RecordError(f"names no known track ({track_text(found)!r:.60}); give --track")
    runs = runs_for(claims, found.claims, runs_of(found.logs))
    headline = _headline(claims, runs)
    seeds = tuple(_seeds(claims, Evidence(runs), headline))
    stated = headline.figure.value if headline else None
    if not seeds and stated is None:
        raise RecordError("no score: no val_bpb in the claim, and none in a log")
    for score in (*(seed.val_bpb for seed in seeds), *([stated] if stated is not None else [])):
        if not 0 < score < _WORST_BPB:
            raise RecordError(f"a score of {score:g} bits per byte is none")
    hardware = hardware_of(claims)
    report = audit_record(found, chosen)
    return Record(
        slug=_slug(found, claims),
        date=_date(found, claims),
        author=_text(claims, "author", "submitter", "name_of_author"),
        github_id=_text(claims, "github_id", "github", "github_username"),
        summary=_text(claims, "name", "run_name", "technique_summary", "blurb"),
        track=chosen.name,
        track_version=0,
        data_fingerprint="",
        num_tokens=0,
        num_bytes=0,
        hardware=clean(hardware) if hardware else "",
        sandboxed=False,
        seeds=seeds,
        status=Standing.PUBLISHED,
        claimed_bpb=stated,
        claimed_loss=_stated(claims, "nats"),
        claimed_bytes=_whole(_stated(claims, "total")),
        source=clean(found.name),
        findings=tuple(
            clean(str(finding), 400)
            for finding in report.findings
            if finding.severity in (Severity.BROKEN, Severity.CONTRADICTION)
        ),
    )


def _headline(claims: Claims, runs: list[Log]) -> Claim | None:
    """The score that the record is about.

    A claim without one may state it under the name of the loss: if a log's last score is that.
    """
    if claims.headline is not None:
        return claims.headline
    finals = [run.final.bpb for run in runs if run.final is not None]
    for claim in claims.figures:
        is_plain = claim.kind == "nats" and len(claim.path) == 1 and not claim.is_early
        if is_plain and any(claim.figure.agrees(final) for final in finals):
            return claim
    return None


def _seeds(claims: Claims, evidence: Evidence, headline: Claim | None) -> Iterator[SeedResult]:
    """The seeds of the claim's table, else the one that it declares, else those of the logs."""
    tables = {kind: claims.table((), kind) for kind in ("bpb", "nats", "total", "steps")}
    tables |= {kind: claims.table((), kind) for kind in ("train_s", "eval_s")}
    runs = {run.seed: run for run in evidence.finals(claims) if run.final is not None}
    declared = list(dict.fromkeys(seed for seed, _ in claims.seeds))
    scored: dict[int | None, float] = {s: f.value for s, f in tables["bpb"].items()}
    if not scored and headline is not None and len(declared or runs) == 1:
        only: list[int | None] = [*(declared or runs)]
        scored = {only[0]: headline.figure.value}  # nobody else can be meant
    if not scored:
        scored = {seed: run.final.bpb.value for seed, run in runs.items() if run.final}
    for seed, bpb in scored.items():
        run = runs.get(seed)
        final = run.final if run else None
        # A log line about another point of evaluation tells nothing of this score.
        same = final is not None and abs(final.bpb.value - bpb) <= max(final.bpb.half, 5e-5)
        logged: dict[str, Figure | None] = {
            "nats": final.nats if final and same else None,
            "total": Figure(run.total.bytes, 0.0, 0) if run and run.total else None,
            "steps": run.num_steps if run else None,
            "train_s": run.train_ms.scaled(1e-3) if run and run.train_ms else None,
            "eval_s": final.eval_ms.scaled(1e-3) if final and same and final.eval_ms else None,
        }
        is_only = len(scored) == 1 and headline is not None and bpb == headline.figure.value
        figures = {
            kind: _first(
                tables[kind].get(seed) if seed is not None else None,
                _stated(claims, kind) if is_only else None,
                logged[kind],
            )
            for kind in logged
        }
        yield SeedResult(
            seed=seed,
            val_bpb=bpb,
            val_loss=figures["nats"],
            num_bytes=_whole(figures["total"]),
            num_steps=_whole(figures["steps"]),
            train_seconds=figures["train_s"],
            eval_seconds=figures["eval_s"],
        )


def _first(*figures: Figure | float | None) -> float | None:
    """The first that is known: the claim's table, then its plain figures, then the log."""
    for figure in figures:
        if figure is not None:
            return figure.value if isinstance(figure, Figure) else figure
    return None


def _stated(claims: Claims, kind: str) -> float | None:
    """A plain figure at the top of a claim, else the largest of its seeds."""
    for summary in ("", "max"):
        found = [
            claim.figure.value
            for claim in claims.figures
            if (claim.kind, claim.summary) == (kind, summary)
            and len(claim.path) == 1
            and not claim.is_early
        ]
        if found:
            return max(found)
    return None


def _text(claims: Claims, *keys: str) -> str:
    """The first of these keys that holds words."""
    for key in keys:
        leaf = claims.get(key)
        if leaf is not None and isinstance(leaf.value, str) and leaf.value.strip():
            return clean(leaf.value.strip(), _SUMMARY_CHARACTERS)
    return ""


def _date(found: Folder, claims: Claims) -> str:
    """What the claim says, else what the folder's name begins with.

    Raises
        RecordError: neither names a day.
    """
    for text in (_text(claims, "date"), found.folder.resolve().name):
        if match := _DATE.match(text):
            return match[1]
    raise RecordError("no date, neither in the claim nor in the folder's name")


def _slug(found: Folder, claims: Claims) -> str:
    """The folder's name in our letters, without its date; a second claim adds its own words."""
    name = _DATE.sub("", found.folder.resolve().name, count=1)
    if len(found.claims) > 1:
        name += "-" + claims.name.removeprefix("submission").removesuffix(".json")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug[:120].rstrip("-") or "unnamed"


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
