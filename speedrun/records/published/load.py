"""Published tables as records with the standing `published`: never verified here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from speedrun import settings
from speedrun.records.record import Record, SeedResult, Standing

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a published table."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    slug: str
    date: str
    author: str
    track: str
    val_bpb: float
    """As the table has it, rounded; often that of the best seed."""
    source: str
    summary: str
    seeds: tuple[SeedResult, ...] = ()
    """Where the record's own folder was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One file."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    record: tuple[Row, ...]


def load_published(track: str = "") -> list[Record]:
    """All published rows, or those of one track, best first.

    Raises
        ConfigError: a file is damaged.
        RecordError: a row is no record.
    """
    found = []
    for name in settings.list_names(FOLDER):
        path = FOLDER / f"{name}.toml"
        values = settings.read_toml(path)
        for row in values.get("record", []):  # what a row leaves out is unknown, not zero
            row["seeds"] = [{"seed": None, **seed} for seed in row.get("seeds", [])]
        table = settings.validate(Table, values, source=path.name)
        found += [_record(row) for row in table.record if track in ("", row.track)]
    return sorted(found, key=lambda record: record.claimed_bpb or record.val_bpb.mean)


def _record(row: Row) -> Record:
    return Record(
        slug=row.slug,
        date=row.date,
        author=row.author,
        summary=row.summary,
        track=row.track,
        track_version=0,
        data_fingerprint="",
        num_tokens=0,
        num_bytes=0,
        hardware="",
        sandboxed=False,
        seeds=row.seeds,
        status=Standing.PUBLISHED,
        claimed_bpb=row.val_bpb,
        source=row.source,
    )
