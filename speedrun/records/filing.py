"""Filing: from submissions and the judge's verdicts to a record's folder, by the track's rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedrun.config import RunConfig
from speedrun.errors import FormatError, RecordError
from speedrun.files import atomic_path, sha256_file
from speedrun.pack.container import read_header
from speedrun.pack.submission import MODEL_NAME, counted_bytes
from speedrun.recipes.load import write_recipe
from speedrun.records.record import (
    RECORD_NAME,
    Record,
    SeedResult,
    Standing,
    list_records,
    scores,
    standing_record,
    to_json,
    today,
)
from speedrun.tracks.load import Track
from speedrun.verify.judge import LEVELS
from speedrun.verify.significance import significance
from speedrun.verify.verdict import RuleResult, Status, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """A record that was written, and the test that it passed."""

    record: Record
    folder: Path
    shown: RuleResult | None
    """The test against the standing record; None of a non-record, which nobody tests."""


def make_record(
    submissions: Sequence[Path],
    verdicts: Sequence[Verdict],
    track: Track,
    *,
    slug: str,
    date: str,
    summary: str,
    author: str = "",
    github_id: str = "",
    based_on: str = "",
    status: Standing = Standing.RECORD,
) -> Record:
    """Put together a record from submissions (one per seed) and the verdicts on them.

    Raises
        RecordError: too few seeds, a verdict that did not pass, that is about something else, or
            that did not measure a score; or claims that cannot be read.
    """
    fewest = track.record.seeds if status is Standing.RECORD else 1
    if len(submissions) != len(verdicts) or len(submissions) < fewest:
        raise RecordError(
            f"{len(submissions)} submissions and {len(verdicts)} verdicts; {track.name} asks for "
            f"{fewest} seeds, with a verdict on each"
        )
    seeds, claims = [], []
    for folder, verdict in zip(submissions, verdicts, strict=True):
        found = verdict.measurement
        problem = (
            f"its verdict is {verdict.status}: {_first_wrong(verdict)}"
            if verdict.status is not Status.PASS
            else "its verdict measured no score"
            if found is None
            else f"its verdict is for {verdict.track} v{verdict.track_version}"
            if (verdict.track, verdict.track_version) != (track.name, track.version)
            else "its manifest is not the one that was judged"
            if _manifest_hash(folder) != verdict.manifest_sha256
            else ""
        )
        if problem or found is None:
            raise RecordError(f"{folder}: {problem}; verify it on {track.name} first")
        claims.append(claim := read_claims(folder))
        seeds.append(
            SeedResult(
                seed=claim["seed"],
                val_bpb=found.bpb,
                val_loss=found.nats_per_token,
                num_bytes=counted_bytes(folder, track).total,
                train_seconds=claim["wallclock_seconds"],
                num_steps=claim["step_stop"],
                eval_seconds=found.eval_seconds,
                manifest_sha256=verdict.manifest_sha256,
            )
        )
        for key in ("author", "data_fingerprint"):
            if claim[key] != claims[0][key]:
                raise RecordError(f"{folder}: {key} differs from that of {submissions[0]}")
    first = verdicts[0].measurement
    assert first is not None
    return Record(
        slug=slug,
        date=date,
        author=author or claims[0]["author"],
        github_id=github_id or str(claims[0].get("github_id") or ""),
        summary=summary,
        track=track.name,
        track_version=track.version,
        data_fingerprint=claims[0]["data_fingerprint"],
        num_tokens=first.num_tokens,
        num_bytes=first.num_bytes,
        hardware=claims[0]["hardware"],
        sandboxed=all(verdict.isolation == "bubblewrap" for verdict in verdicts),
        seeds=tuple(sorted(seeds, key=lambda seed: seed.seed or 0)),
        status=status,
        based_on=based_on,
        level=min((verdict.level for verdict in verdicts), key=lambda name: _DEPTH.get(name, 0)),
        rules_version=min(verdict.rules_version for verdict in verdicts),
    )


_DEPTH: dict[str, int] = {name: depth for depth, name in enumerate(LEVELS)}


def add_record(
    root: Path,
    submissions: Sequence[Path],
    verdicts: Sequence[Verdict],
    track: Track,
    *,
    slug: str,
    summary: str,
    date: str | None = None,
    author: str = "",
    github_id: str = "",
    based_on: str = "",
    as_non_record: bool = False,
    undeclared: Sequence[float | None] = (),
) -> Filed:
    """File a new record under `root`, if it beats the standing one by the track's rule.

    Args:
        root: Folder of all records.
        submissions, verdicts: One for each seed.
        track: Its rules.
        slug, summary, date: Of the record.
        author, github_id: As claimed where they are empty.
        based_on: Name of the record that this one builds on, if any.
        as_non_record: File it as what it is, verified, without a test against the record.
        undeclared: Scores (None: unknown) of runs of the recipe that were not handed in.

    Raises
        RecordError: see `make_record`; or the holder is not beaten (with the seeds that would
            settle it), or the folder is taken.
        OutputError: the folder cannot be written.
    """
    record = make_record(
        submissions,
        verdicts,
        track,
        slug=slug,
        date=date or today(),
        summary=summary,
        author=author,
        github_id=github_id,
        based_on=based_on,
        status=Standing.NON_RECORD if as_non_record else Standing.RECORD,
    )
    known = list_records(root, track.name)
    if based_on and all(other.name != based_on for other in known):
        raise RecordError(f"{slug}: based on {based_on!r}, which is no record in {root}")
    shown = None
    if not as_non_record:
        holder = standing_record(known, track, record.data_fingerprint)
        shown = significance(
            scores(record),
            scores(holder) if holder else None,
            track,
            num_tokens=record.num_tokens,
            num_bytes=record.num_bytes,
            seeds=[seed.seed for seed in record.seeds if seed.seed is not None],
            undeclared=undeclared,
        )
        if shown.status is not Status.PASS:
            parts = (shown.measured, shown.limit and f"asked {shown.limit}", shown.evidence)
            against = f" against {holder.name}" if holder else ""
            raise RecordError(
                f"{slug}: no new record{against}: {'; '.join(filter(None, parts))}. To mend it: "
                f"{shown.fix}; or file it as it is with --non-record"
            )
    target = root / track.name / record.name
    if target.exists():
        raise RecordError(f"{target} is there already; choose another slug")
    with atomic_path(target) as folder:
        folder.mkdir(parents=True)
        (folder / RECORD_NAME).write_bytes(to_json(record))
        by_seed = {
            str(read_claims(path)["seed"]): verdict.to_dict()
            for path, verdict in zip(submissions, verdicts, strict=True)
        }
        (folder / "verdict.json").write_text(json.dumps(by_seed, indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(_readme(record, shown), encoding="utf-8")
        for path in submissions:
            _copy_logs(path, folder, f"seed{read_claims(path)['seed']}")
        if (run := recipe_of(submissions[0])) is not None:
            write_recipe(folder / "recipe.toml", run)
    return Filed(record=record, folder=target, shown=shown)


def recipe_of(submission: Path) -> RunConfig | None:
    """The recipe that its weights carry; None for a predictor of the author's own.

    Raises
        RecordError: its weights do not open.
    """
    try:
        meta = read_header((submission / MODEL_NAME).read_bytes()).meta
        return RunConfig.from_dict(meta["run"]) if "run" in meta else None
    except (OSError, FormatError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{submission / MODEL_NAME}: cannot be read: {error}") from error


def _copy_logs(submission: Path, folder: Path, name: str) -> None:
    """What the run's curves and its budget are drawn from; a predictor's may lack the log."""
    for source, suffix in (("train.log", ".log"), ("ledger.jsonl", ".ledger.jsonl")):
        if (path := submission / "logs" / source).is_file():
            shutil.copyfile(path, folder / f"{name}{suffix}")


def _first_wrong(verdict: Verdict) -> str:
    wrong = [result for result in verdict.results if result.status is verdict.status]
    return "; ".join(part for part in (wrong[0].id, wrong[0].evidence, wrong[0].fix) if part)


def _readme(record: Record, shown: RuleResult | None) -> str:
    """The text beside a record; the reader may add to it."""
    lines = [
        f"# {record.slug}",
        "",
        record.summary,
        "",
        f"{record.track} v{record.track_version}, {record.date}, {record.author}: "
        f"**{record.val_bpb} bpb** on {record.hardware}.",
        "",
    ]
    if record.status is Standing.NON_RECORD:
        lines += ["Verified, filed as a non-record: it was not tested against the record.", ""]
    if record.based_on:
        lines += [f"Builds on {record.based_on}.", ""]
    if shown is not None:
        parts = (shown.measured, shown.evidence)
        lines += [f"Against the record before it: {'; '.join(filter(None, parts))}.", ""]
    lines += [
        f"Judged at level {record.level}, rules version {record.rules_version}"
        f"{'' if record.sandboxed else ', not sandboxed'}.",
        "",
        "| seed | val_bpb | val_loss | bytes | train s | steps |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.seed} | {s.val_bpb:.5f} | {s.val_loss:.5f} | {s.num_bytes:,} | "
        f"{s.train_seconds:.1f} | {s.num_steps:,} |"
        for s in record.seeds
    ]
    return "\n".join(lines) + "\n"


_KEYS: dict[str, type | tuple[type, ...]] = {
    "author": str,
    "seed": int,
    "wallclock_seconds": (int, float),
    "step_stop": int,
    "data_fingerprint": str,
    "hardware": str,
}


def read_claims(folder: Path) -> dict[str, Any]:
    """`submission.json` of one seed, with the keys that a record repeats.

    Raises
        RecordError: it cannot be read, or lacks one of them.
    """
    path = folder / "submission.json"
    try:
        claims = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    for key, kind in _KEYS.items():
        if not isinstance(claims, dict) or not isinstance(claims.get(key), kind):
            raise RecordError(f"{path}: needs {key}, which a record repeats; build it again")
    return dict(claims)


def _manifest_hash(folder: Path) -> str:
    try:
        return sha256_file(folder / "manifest.json")
    except OSError as error:
        raise RecordError(f"{folder / 'manifest.json'}: cannot be read: {error}") from error
