"""Records: results that count, one folder each, and what is known of them.

    records/<track>/<date>-<slug>/    README.md  record.json  verdict.json  recipe.toml
                                      seed<N>.log  seed<N>.ledger.jsonl

A record is verified here (`filing` makes it from submissions and the judge's verdicts), or
published elsewhere and read in (`imports`, `published`). Nothing is measured here.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from speedrun.errors import RecordError
from speedrun.files import write_atomic
from speedrun.stats import Comparison, Summary, compare, margin_in_bpb, summarise
from speedrun.tracks.load import Track

SCHEMA_VERSION = 2
"""1 had neither status, lineage nor withdrawal; it is read as what it was: a verified record."""
RECORD_NAME = "record.json"
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Standing(StrEnum):
    """What a record is worth."""

    RECORD = "record"
    """Verified here, and better than what stood before it by the track's rule."""
    NON_RECORD = "non-record"
    """Verified here; no claim to be the best."""
    PUBLISHED = "published"
    """Published elsewhere, not verified here."""

    @property
    def words(self) -> str:
        """For tables."""
        return "published, not verified here" if self is Standing.PUBLISHED else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """One seed of a record: as the judge measured it, or as it was published."""

    seed: int | None
    """None where nobody says."""
    val_bpb: float
    val_loss: float | None = None
    """Mean nats per token."""
    num_bytes: int | None = None
    """Counted bytes of the submission."""
    train_seconds: float | None = None
    num_steps: int | None = None
    eval_seconds: float | None = None
    manifest_sha256: str = ""
    """Of the submission that was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """Why a record no longer counts, and since when."""

    date: str
    reason: str


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
    """Rules version of the track; 0 where a published result names none."""
    data_fingerprint: str
    """Empty where a published result names none."""
    num_tokens: int
    num_bytes: int
    """Targets and raw bytes of the scored text; 0 where a published result says neither."""
    hardware: str
    sandboxed: bool
    seeds: tuple[SeedResult, ...]
    status: Standing = Standing.RECORD
    github_id: str = ""
    based_on: str = ""
    """Name of the record that this one builds on."""
    level: str = ""
    """How deep the judge looked: `score`, `probe` or `prove`; empty where nobody did."""
    rules_version: int = 0
    """Of the judge's rules; 0 where nobody judged, or before they had a number."""
    claimed_bpb: float | None = None
    """Of a published result: the score that its authors state."""
    claimed_loss: float | None = None
    claimed_bytes: int | None = None
    source: str = ""
    """Of a published result: where it was published."""
    findings: tuple[str, ...] = ()
    """Of a published result: what its own files contradict; see `verify.forensics`."""
    withdrawn: Withdrawal | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.date}-{self.slug}"

    @property
    def val_bpb(self) -> Summary:
        """Mean and spread of the score over the seeds; the stated score where none is known."""
        return summarise([seed.val_bpb for seed in self.seeds] or [self.claimed_bpb or 0.0])

    @property
    def largest_bytes(self) -> int | None:
        """Bytes of the largest seed; the stated size where none is known."""
        sizes = [seed.num_bytes for seed in self.seeds if seed.num_bytes is not None]
        return max(sizes, default=self.claimed_bytes)

    @property
    def counts(self) -> bool:
        """Whether it may stand: verified, a record, not withdrawn."""
        return self.status is Standing.RECORD and self.withdrawn is None

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.slug):
            raise RecordError(f"slug {self.slug!r}: use lower-case letters, digits and dashes")
        check_date(self.date)
        known = [seed.seed for seed in self.seeds if seed.seed is not None]
        if len({*known}) != len(known):
            raise RecordError(f"{self.slug}: every record needs seeds, each one once")
        if self.status is Standing.PUBLISHED:
            if not self.seeds and self.claimed_bpb is None:
                raise RecordError(f"{self.slug}: neither seeds nor a stated score")
        elif not self.seeds or len(known) != len(self.seeds):
            raise RecordError(f"{self.slug}: every record needs seeds, each one once")


def check_date(date: str) -> None:
    """Refuse what is no date.

    Raises
        RecordError: not YYYY-MM-DD.
    """
    try:
        datetime.date.fromisoformat(date)
    except (TypeError, ValueError):
        raise RecordError(f"date {date!r}: expected YYYY-MM-DD") from None


def today() -> str:
    """The date by UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def to_json(record: Record) -> bytes:
    """What `record.json` holds."""
    return (json.dumps(dataclasses.asdict(record), indent=2) + "\n").encode()


def read_record(folder: Path) -> Record:
    """Read `record.json` of a record's folder, of this schema or an older one.

    Raises
        RecordError: missing, damaged, or of a newer schema.
    """
    path = folder / RECORD_NAME
    try:
        return _from_values(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a record: {error}") from error
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def _from_values(values: dict[str, Any]) -> Record:
    version = values.pop("schema_version")
    if version not in range(1, SCHEMA_VERSION + 1):
        raise RecordError(f"schema {version}, this version reads up to {SCHEMA_VERSION}; update")
    withdrawn = values.pop("withdrawn", None)
    return Record(
        **{
            **values,
            "seeds": tuple(SeedResult(**seed) for seed in values["seeds"]),
            "status": Standing(values.get("status", Standing.RECORD)),
            "findings": tuple(values.get("findings", ())),
        },
        withdrawn=Withdrawal(**withdrawn) if withdrawn else None,
    )


def list_records(root: Path, track: str) -> list[Record]:
    """All records of one track under `root` (usually `records`), best mean first.

    Raises
        RecordError: a folder there holds no readable record.
    """
    folders = sorted(path for path in (root / track).glob("[!.]*") if path.is_dir())
    return sorted(map(read_record, folders), key=lambda record: record.val_bpb.mean)


def standing_record(
    records: Sequence[Record], track: Track, data_fingerprint: str | None = None
) -> Record | None:
    """The one to beat: the best that counts, under the track's rules as they are now.

    A rules version or a text that changes begins a new line of records: the scores of the old one
    do not compare with it.
    """
    found = [
        record
        for record in records
        if record.counts
        and (record.track, record.track_version) == (track.name, track.version)
        and data_fingerprint in (None, record.data_fingerprint)
    ]
    return min(found, key=lambda record: record.val_bpb.mean, default=None)


def check_comparable(challenger: Record, holder: Record) -> None:
    """Refuse to compare scores of other rules or another text, as far as both name them.

    Raises
        RecordError: with the difference.
    """
    for key in ("track", "track_version", "data_fingerprint"):
        ours, theirs = getattr(challenger, key), getattr(holder, key)
        if ours and theirs and ours != theirs:
            raise RecordError(
                f"{challenger.slug} and {holder.slug} differ in {key}: {ours!r} and {theirs!r}; "
                "scores compare within one of them only"
            )


def margin_of(holder: Record, track: Track) -> float | None:
    """The track's margin in bpb of the holder's text; None where nothing tells its tokens.

    Published results rarely name tokens and bytes; a score in both units tells as much.
    """
    nats = track.record.margin_nats_per_token
    if holder.num_tokens and holder.num_bytes:
        return margin_in_bpb(nats, num_tokens=holder.num_tokens, num_bytes=holder.num_bytes)
    pairs = [(seed.val_bpb, seed.val_loss) for seed in holder.seeds]
    pairs.append((holder.claimed_bpb or 0.0, holder.claimed_loss))
    return next((nats * bpb / loss for bpb, loss in pairs if bpb and loss), None)


def compare_records(challenger: Record, holder: Record, track: Track) -> Comparison:
    """Does the challenger beat the holder by the track's margin? Gains are in bpb.

    Where the holder's margin is unknown (`margin_of`), it is zero.

    Raises
        RecordError: their scores cannot be compared: other rules, another text, or one seed.
    """
    check_comparable(challenger, holder)
    return compare(scores(challenger), scores(holder), margin=margin_of(holder, track) or 0.0)


def scores(record: Record) -> list[float]:
    """Of its seeds, or the stated one."""
    known = [seed.val_bpb for seed in record.seeds]
    return known or ([] if record.claimed_bpb is None else [record.claimed_bpb])


def withdraw(folder: Path, reason: str, date: str) -> Record:
    """Note in a record's folder that it no longer counts; nothing of it is removed.

    Raises
        RecordError: no record, no reason, or withdrawn already.
        OutputError: the folder cannot be written.
    """
    record = read_record(folder)
    check_date(date)
    if not reason.strip():
        raise RecordError(f"{record.name}: a withdrawal needs a reason")
    if record.withdrawn is not None:
        raise RecordError(f"{record.name}: withdrawn on {record.withdrawn.date} already")
    changed = dataclasses.replace(record, withdrawn=Withdrawal(date=date, reason=reason.strip()))
    write_atomic(folder / RECORD_NAME, to_json(changed))
    return changed
