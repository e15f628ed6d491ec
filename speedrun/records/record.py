"""Records: verified results that were accepted, one folder each.

    records/<track>/<date>-<slug>/    README.md  record.json  verdict.json  recipe.toml  seed<N>.log

A record is made from submissions and the judge's verdicts on them; nothing is measured here.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedrun.config import RunConfig
from speedrun.errors import RecordError
from speedrun.files import atomic_path, sha256_file
from speedrun.pack.container import read_container
from speedrun.pack.submission import counted_bytes
from speedrun.recipes.load import write_recipe
from speedrun.stats import Comparison, Summary, compare, margin_in_bpb, summarise
from speedrun.tracks.load import Track
from speedrun.verify.verdict import Status, Verdict

SCHEMA_VERSION = 1
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """One seed of a record, as the judge measured it."""

    seed: int
    val_bpb: float
    val_loss: float
    """Mean nats per token."""
    num_bytes: int
    train_seconds: float
    num_steps: int
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What `record.json` holds: who, when, what changed, and the seeds."""

    slug: str
    """The one idea, `lower-case-with-dashes`."""
    date: str
    author: str
    summary: str
    track: str
    track_version: int
    data_fingerprint: str
    num_tokens: int
    num_bytes: int
    """Targets and raw bytes of the scored text."""
    hardware: str
    sandboxed: bool
    seeds: tuple[SeedResult, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.date}-{self.slug}"

    @property
    def val_bpb(self) -> Summary:
        """Mean and spread of the score over the seeds."""
        return summarise([seed.val_bpb for seed in self.seeds])

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.slug):
            raise RecordError(f"slug {self.slug!r}: use lower-case letters, digits and dashes")
        try:
            datetime.date.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise RecordError(f"date {self.date!r}: expected YYYY-MM-DD") from None
        if self.schema_version != SCHEMA_VERSION:
            raise RecordError(
                f"{self.slug}: schema {self.schema_version}, only {SCHEMA_VERSION} can be read"
            )
        if len({seed.seed for seed in self.seeds}) != len(self.seeds) or not self.seeds:
            raise RecordError(f"{self.slug}: every record needs seeds, each one once")


def read_record(folder: Path) -> Record:
    """Read `record.json` of a record's folder.

    Raises
        RecordError: missing, damaged, or of another schema.
    """
    path = folder / "record.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        seeds = tuple(SeedResult(**seed) for seed in values.pop("seeds"))
        return Record(**values, seeds=seeds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a record: {error}") from error


def list_records(root: Path, track: str) -> list[Record]:
    """Records of one track under `root` (usually `records`), best mean first.

    Raises
        RecordError: a folder there holds no readable record.
    """
    folders = sorted(path for path in (root / track).glob("*") if path.is_dir())
    return sorted(map(read_record, folders), key=lambda record: record.val_bpb.mean)


def compare_records(challenger: Record, holder: Record, track: Track) -> Comparison:
    """Does the challenger beat the holder by the track's margin? Gains are in bpb.

    Raises
        RecordError: their scores cannot be compared: other rules or another text.
    """
    for key in ("track", "track_version", "data_fingerprint"):
        ours, theirs = getattr(challenger, key), getattr(holder, key)
        if ours != theirs:
            raise RecordError(
                f"{challenger.slug} and {holder.slug} differ in {key}: {ours!r} and {theirs!r}; "
                "scores compare within one of them only"
            )
    margin = margin_in_bpb(
        track.record.margin_nats_per_token,
        num_tokens=holder.num_tokens,
        num_bytes=holder.num_bytes,
    )
    return compare(
        [seed.val_bpb for seed in challenger.seeds],
        [seed.val_bpb for seed in holder.seeds],
        margin=margin,
    )


def make_record(
    submissions: Sequence[Path],
    verdicts: Sequence[Verdict],
    track: Track,
    *,
    slug: str,
    date: str,
    summary: str,
) -> Record:
    """Put together a record from submissions (one per seed) and the verdicts on them.

    Raises
        RecordError: too few seeds, a verdict that did not pass, that is about something else, or
            that did not measure a score; or claims that cannot be read.
    """
    if len(submissions) != len(verdicts) or len(submissions) < track.record.seeds:
        raise RecordError(
            f"{len(submissions)} submissions and {len(verdicts)} verdicts; {track.name} asks for "
            f"{track.record.seeds} seeds, with a verdict on each"
        )
    seeds, claims = [], []
    for folder, verdict in zip(submissions, verdicts, strict=True):
        found = verdict.measurement
        problem = (
            f"its verdict is {verdict.status}"
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
        claims.append(claim := _claims(folder))
        seeds.append(
            SeedResult(
                seed=claim["seed"],
                val_bpb=found.bpb,
                val_loss=found.nats_per_token,
                num_bytes=counted_bytes(folder, track).total,
                train_seconds=claim["wallclock_seconds"],
                num_steps=claim["step_stop"],
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
        author=claims[0]["author"],
        summary=summary,
        track=track.name,
        track_version=track.version,
        data_fingerprint=claims[0]["data_fingerprint"],
        num_tokens=first.num_tokens,
        num_bytes=first.num_bytes,
        hardware=claims[0]["hardware"],
        sandboxed=all(verdict.isolation == "bubblewrap" for verdict in verdicts),
        seeds=tuple(sorted(seeds, key=lambda seed: seed.seed)),
    )


def add_record(
    root: Path,
    submissions: Sequence[Path],
    verdicts: Sequence[Verdict],
    track: Track,
    *,
    slug: str,
    summary: str,
    date: str | None = None,
) -> tuple[Record, Comparison | None]:
    """File a new record under `root`, if it beats the standing one by the track's rule.

    Returns the record and how it compares with the holder; None if it is the track's first.

    Raises
        RecordError: see `make_record`; or the holder is not beaten, or the folder is taken.
        OutputError: the folder cannot be written.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = make_record(
        submissions, verdicts, track, slug=slug, date=date or today, summary=summary
    )
    comparison = None
    if holders := list_records(root, track.name):
        comparison = compare_records(record, holders[0], track)
        if comparison.p > track.record.p_value:
            raise RecordError(
                f"{slug}: {record.val_bpb} against {holders[0].val_bpb} of {holders[0].name} gains "
                f"{comparison.gain:.4f} bpb; {track.name} asks for more than "
                f"{comparison.margin:.4f} at p <= {track.record.p_value:g}, found "
                f"p = {comparison.p:.3g}"
            )
    target = root / track.name / record.name
    if target.exists():
        raise RecordError(f"{target} is there already; choose another slug")
    with atomic_path(target) as folder:
        folder.mkdir(parents=True)
        _write_json(folder / "record.json", dataclasses.asdict(record))
        by_seed = {
            str(_claims(path)["seed"]): verdict.to_dict()
            for path, verdict in zip(submissions, verdicts, strict=True)
        }
        _write_json(folder / "verdict.json", by_seed)
        (folder / "README.md").write_text(_readme(record, comparison), encoding="utf-8")
        for path in submissions:
            log = folder / f"seed{_claims(path)['seed']}.log"
            shutil.copyfile(path / "logs" / "train.log", log)
        meta, _ = read_container((submissions[0] / "model.srz").read_bytes())
        write_recipe(folder / "recipe.toml", RunConfig.from_dict(meta["run"]))
    return record, comparison


def _readme(record: Record, comparison: Comparison | None) -> str:
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
    if comparison:
        lines += [
            f"Gains {comparison.gain:.4f} bpb on the record before it (margin "
            f"{comparison.margin:.4f}, t = {comparison.t:.2f}, p = {comparison.p:.2g}).",
            "",
        ]
    lines += [
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


def _claims(folder: Path) -> dict[str, Any]:
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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
