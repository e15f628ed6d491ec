"""The static site of the records: a page for each track, a page for each record, and the data.

    index.html            the first track: ladder, charts, table
    <track>.html          the other tracks
    <track>/<record>.html one record with its evidence
    <track>.json, .csv    the tables as data

Every page stands alone and opens from a disk. Pages are a pure function of the records, so a site
that is built again differs only where they do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speedrun.errors import ConfigError, RecordError
from speedrun.files import write_atomic
from speedrun.pages.bars import Part, timeline, waterfall
from speedrun.pages.curves import loss_charts
from speedrun.pages.drawing import Chart
from speedrun.pages.entries import (
    PUBLISHED,
    RECORD,
    STATUS_WORDS,
    Entry,
    children_of,
    facts,
    ladder,
    make_entries,
    marks_by,
    parent_of,
    safe_name,
)
from speedrun.pages.evidence import Change, Evidence, changes, read_evidence, recipe_beside
from speedrun.pages.lines import Quantity
from speedrun.pages.page import render
from speedrun.pages.points import HALF, Frontier, frontier_of, point_chart
from speedrun.pages.scales import say_bytes, say_day, say_seconds
from speedrun.records.published.load import load_published
from speedrun.records.record import Record, list_records
from speedrun.records.table import csv_table
from speedrun.settings import flatten
from speedrun.tracks.load import Track, load_track


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A track with its rows, and the name of its page."""

    name: str
    track: Track | None
    """None if the name is not one of a track that is known here."""
    entries: tuple[Entry, ...]
    page: str

    @property
    def standing(self) -> Entry | None:
        """The best verified record."""
        return next((entry for entry in self.entries if entry.status == RECORD), None)

    @property
    def best_published(self) -> Entry | None:
        """The best of the field's."""
        return next((entry for entry in self.entries if entry.status == PUBLISHED), None)


def build_site(
    root: Path,
    out: Path,
    *,
    title: str,
    tracks: Sequence[str] = (),
    published: bool = True,
) -> list[Path]:
    """Write the site of the records under `root` to `out`; returns what was written.

    Args:
        root: Folder of the records.
        out: Folder of the site; pages that are there are replaced, others stay.
        title: Stands on every page.
        tracks: Which, in this order. By default all, and the one with most records first.
        published: Also show what contests published.

    Raises
        RecordError: there are no records, or a folder among them holds none that can be read.
        OutputError: `out` cannot be written.
    """
    elsewhere = load_published() if published else []
    folders = sorted(path.name for path in root.glob("[!.]*") if path.is_dir())
    names = list(tracks) or [*dict.fromkeys([*folders, *(row.track for row in elsewhere)])]
    found = {name: _records_of(root, name, elsewhere) for name in names}
    kept = [name for name in names if found[name]]
    if not kept:
        raise RecordError(f"{root}: no records of {', '.join(names) or 'any track'}; add one first")
    if not tracks:
        kept.sort(key=lambda name: -len(found[name]))
    tables = [
        Table(
            name=name,
            track=_known_track(name),
            entries=tuple(make_entries(found[name], folder=name)),
            page="index.html" if number == 0 else f"{safe_name(name)}.html",
        )
        for number, name in enumerate(kept)
    ]
    written: list[Path] = []

    def write(name: str, data: bytes) -> None:
        write_atomic(out / name, data)
        written.append(out / name)

    for table in tables:
        write(table.page, track_page(table, tables, title=title))
        base = safe_name(table.name)
        records = [entry.record for entry in table.entries]
        values = [dataclasses.asdict(record) for record in records]
        write(f"{base}.json", (json.dumps(values, indent=2) + "\n").encode())
        write(f"{base}.csv", csv_table(records).encode("utf-8", "replace"))
        for entry in table.entries:
            folder = root / table.name / entry.record.name
            write(entry.href, record_page(entry, table, folder, root=root, title=title))
    return written


def track_page(table: Table, tables: Sequence[Table], *, title: str) -> bytes:
    """The page of one track."""
    entries = table.entries
    marks, frontiers = ladder(entries)
    days = {entry.day for entry in entries}
    cap = (table.track.cap_bytes, "limit") if table.track else None
    budget = (table.track.train_seconds, "limit") if table.track else None
    charts = [
        point_chart(
            marks,
            frontiers,
            title="The ladder",
            description=_ladder_words(table),
            x=Quantity(label=_years(entries), say=say_day),
            y_label="bits per byte, lower is better",
            is_time=True,
        )
        if len(days) > 1
        else None
    ]
    for along, limit, words in (("bytes", cap, say_bytes), ("seconds", budget, say_seconds)):
        value = "num_bytes" if along == "bytes" else "seconds"
        placed = marks_by([(entry, getattr(entry, value)) for entry in entries])
        best = frontier_of([mark for mark in placed if mark.kind != "other"])
        name = {"bytes": "size of the submission", "seconds": "training time"}[along]
        charts.append(
            point_chart(
                placed,
                [Frontier(marks=best, kind="pareto", is_named=False)] if len(best) > 1 else [],
                title=f"Score against {along}",
                description=f"Each record by its score and the {name}; the line joins the best "
                f"for what they spend. {len(placed)} of {len(entries)} records say theirs.",
                x=Quantity(label=name, say=words),
                y_label="bits per byte",
                limit=(float(limit[0]), limit[1]) if limit else None,
                size=HALF,
            )
        )
    return render(
        "track.html",
        title=title,
        table=table,
        tables=tables,
        charts=[chart for chart in charts if chart is not None],
        statuses={
            status: words
            for status, words in STATUS_WORDS.items()
            if any(entry.status == status for entry in entries)
        },
        data=safe_name(table.name),
        said=_said,
        say_seconds=say_seconds,
    )


def record_page(entry: Entry, table: Table, folder: Path, *, root: Path, title: str) -> bytes:
    """The page of one record, with all that lies in its folder."""
    evidence = read_evidence(folder)
    parent = parent_of(entry, table.entries)
    return render(
        "record.html",
        title=title,
        table=table,
        entry=entry,
        facts=facts(entry),
        evidence=evidence,
        charts=_record_charts(evidence, table.track),
        parent=parent,
        children=children_of(entry, table.entries),
        difference=_difference(evidence, parent, table, root),
        settings=flatten(evidence.recipe.to_dict()) if evidence.recipe else {},
        withdrawal=entry.record.withdrawn,
        findings=entry.record.findings,
        said=_said,
    )


def _record_charts(evidence: Evidence, track: Track | None) -> list[Chart]:
    charts: list[Chart | None] = [*loss_charts(evidence.courses)]
    sized = [course for course in evidence.courses if course.sizes.get("model")]
    if sized:
        largest = max(sized, key=lambda course: sum(course.sizes.values()))
        charts.append(
            waterfall(
                [
                    Part(name=name, amount=largest.sizes[key])
                    for key, name in (("code", "code"), ("model", "packed weights"))
                    if key in largest.sizes
                ],
                limit=track.cap_bytes if track else None,
                title="Bytes",
                description=f"What counts against the limit, in {largest.name}, the largest.",
                say=say_bytes,
            )
        )
    if evidence.ledgers:
        name, phases = evidence.ledgers[0]
        charts.append(
            timeline(
                phases,
                title="The clock",
                description=f"Phases of the ledger, {name}. Coloured ones are on the budget.",
            )
        )
    return [chart for chart in charts if chart is not None]


def _difference(
    evidence: Evidence, parent: Entry | None, table: Table, root: Path
) -> tuple[Change, ...] | None:
    """What changed against the parent's recipe; None where one of the two is not there."""
    if evidence.recipe is None or parent is None:
        return None
    try:
        before = recipe_beside(root / table.name / parent.record.name)
    except (ConfigError, RecordError):
        return None
    return None if before is None else changes(before, evidence.recipe)


def _ladder_words(table: Table) -> str:
    said = []
    for entry, words in ((table.standing, "verified"), (table.best_published, "published")):
        if entry is not None:
            said.append(
                f"The best {words} result is {entry.record.slug} with {entry.bpb:.4f} bits per "
                f"byte, {entry.record.date}."
            )
    return " ".join([*said, "Filled points are verified here, rings were published elsewhere."])


def _years(entries: Sequence[Entry]) -> str:
    """`2026`, or `2026 to 2027`: the ticks say day and month only."""
    years = sorted({entry.record.date[:4] for entry in entries})
    return years[0] if len(years) == 1 else f"{years[0]} to {years[-1]}"


def _said(value: float | int | None, form: str) -> str:
    return "\N{EN DASH}" if value is None else f"{value:{form}}"


def _records_of(root: Path, name: str, elsewhere: Sequence[Record]) -> list[Record]:
    """Of one track, those that were published only where no folder here has them."""
    here = list_records(root, name)
    known = {record.slug for record in here}
    return here + [row for row in elsewhere if row.track == name and row.slug not in known]


def _known_track(name: str) -> Track | None:
    try:
        return load_track(name)
    except ConfigError:
        return None
