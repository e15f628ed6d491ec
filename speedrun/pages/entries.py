"""Records as the rows of a page: what is shown of each, its place, and who follows whom."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from speedrun.pages.points import Frontier, Mark, frontier_of
from speedrun.pages.scales import say_seconds
from speedrun.records.record import Record, Standing

RECORD, NON_RECORD, PUBLISHED = (standing.value for standing in Standing)
WITHDRAWN = "withdrawn"
STATUS_WORDS = {
    RECORD: "verified record",
    NON_RECORD: "verified, no record",
    PUBLISHED: "published, not verified here",
    WITHDRAWN: "withdrawn",
}
"""What people read; in a table the part after a comma is left to those who hear it."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the table, and the head of a record's page."""

    record: Record
    row: str
    """Id of the row, and the name of the page without its ending."""
    status: str
    bpb: float
    spread: float
    num_bytes: int | None
    """Of the largest seed."""
    seconds: float | None
    """Training time of the slowest seed."""
    num_steps: int | None
    gain: float | None = None
    """What it took off the best of its kind before it; None if it was not better."""
    place: int | None = None
    """From the best, 1; None if it is withdrawn."""

    @property
    def href(self) -> str:
        """Its page, seen from the table."""
        return f"{self.row}.html"

    @property
    def day(self) -> int:
        """Ordinal number of the date."""
        return datetime.date.fromisoformat(self.record.date[:10]).toordinal()

    @property
    def status_words(self) -> str:
        """For people."""
        return STATUS_WORDS[self.status]

    @property
    def based_on(self) -> str:
        """Name of the record that it says it builds on."""
        return self.record.based_on


def make_entries(records: Sequence[Record], *, folder: str) -> list[Entry]:
    """Rows of one track, best first and withdrawn ones last; their pages lie in `folder`."""
    taken: set[str] = set()
    entries = []
    for record in sorted(records, key=lambda record: (record.val_bpb.mean, record.date)):
        row = f"{safe_name(folder)}/{safe_name(record.name)}"
        while row.lower() in taken:  # names may differ in what a file name cannot hold
            row += "-"
        taken.add(row.lower())
        seeds = record.seeds
        entries.append(
            Entry(
                record=record,
                row=row,
                status=_status(record),
                bpb=record.val_bpb.mean,
                spread=record.val_bpb.spread,
                num_bytes=record.largest_bytes,
                seconds=max((s.train_seconds for s in seeds if s.train_seconds), default=None),
                num_steps=max((s.num_steps for s in seeds if s.num_steps), default=None),
            )
        )
    return _placed(entries)


def safe_name(text: str) -> str:
    """A file name made of a text: no folders, no dots in front, nothing a link must quote."""
    return _UNSAFE.sub("-", text).strip(".-") or "unnamed"


def parent_of(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The record that it builds on, or else the one that it took the lead from."""
    named = {other.record.name: other for other in entries}
    if entry.based_on:
        return named.get(entry.based_on)
    earlier = [
        other
        for other in entries
        if other.status == entry.status and other.gain is not None and other.day < entry.day
    ]
    return min(earlier, key=lambda other: other.bpb, default=None)


def children_of(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Records that say they build on it."""
    return [other for other in entries if other.based_on == entry.record.name]


def ladder(entries: Sequence[Entry]) -> tuple[list[Mark], list[Frontier]]:
    """Points by date, and the frontiers of the verified records and of the published ones."""
    marks = marks_by([(entry, float(entry.day)) for entry in entries])
    frontiers = [
        Frontier(
            marks=frontier_of([mark for mark in marks if mark.kind == kind]),
            kind=kind,
        )
        for kind in (PUBLISHED, RECORD)
    ]
    return marks, [frontier for frontier in frontiers if frontier.marks]


def marks_by(places: Sequence[tuple[Entry, float | None]]) -> list[Mark]:
    """Points of the entries at these places along x; those without one, or withdrawn, have none."""
    return [
        Mark(
            x=at,
            y=entry.bpb,
            kind=entry.status if entry.status in (RECORD, PUBLISHED) else "other",
            row=entry.row,
            name=entry.record.slug,
            said=f"{entry.record.slug}: {entry.bpb:.4f} bpb, {entry.record.date}",
        )
        for entry, at in places
        if at is not None and entry.status != WITHDRAWN
    ]


def facts(entry: Entry) -> dict[str, str]:
    """What stands in the head of a record's page, in words."""
    record = entry.record
    said = {
        "track": record.track + (f" v{record.track_version}" if record.track_version else ""),
        "author": record.author,
        "date": record.date,
        "hardware": record.hardware,
        "seeds": ", ".join(str(seed.seed) for seed in record.seeds if seed.seed is not None),
        "size": "" if entry.num_bytes is None else f"{entry.num_bytes:,} bytes",
        "training": "" if entry.seconds is None else say_seconds(entry.seconds),
        "steps": "" if entry.num_steps is None else f"{entry.num_steps:,}",
        "judged": f"at level {record.level}" if record.level else "",
        "source": record.source,
    }
    return {key: value for key, value in said.items() if value}


def _status(record: Record) -> str:
    return WITHDRAWN if record.withdrawn else record.status.value


def _placed(entries: list[Entry]) -> list[Entry]:
    """With places and gains filled in; entries come best first."""
    gains: dict[str, float] = {}
    for kind in (RECORD, PUBLISHED):
        mine = sorted((e for e in entries if e.status == kind), key=lambda e: (e.day, -e.bpb))
        best: float | None = None
        for entry in mine:
            if best is None or entry.bpb < best:
                gains[entry.row] = 0.0 if best is None else best - entry.bpb
                best = entry.bpb
    entries = sorted(entries, key=lambda entry: entry.status == WITHDRAWN)
    return [
        replace(
            entry,
            gain=gains.get(entry.row),
            place=None if entry.status == WITHDRAWN else number,
        )
        for number, entry in enumerate(entries, start=1)
    ]
