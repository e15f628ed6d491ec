"""Records and runs as tables: Markdown between two markers of a README, CSV, and on a terminal."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from speedrun.errors import RecordError
from speedrun.files import write_atomic
from speedrun.records.record import Record, Standing
from speedrun.records.runs import RunRow
from speedrun.records.sheet import sheet

BEGIN, END = "<!-- records:begin -->", "<!-- records:end -->"


def markdown_table(records: Sequence[Record], *, link_root: str = "records") -> str:
    """Rows of one table, best first, each linked to its folder; empty text without records."""
    if not records:
        return ""
    rows = [
        "| val_bpb | spread | seeds | record | track | author | date | bytes | status |",
        "|---" * 9 + "|",
    ]
    for record in _ranked(records):
        found, size = record.val_bpb, record.largest_bytes
        track = f"{record.track} v{record.track_version}" if record.track_version else record.track
        rows.append(
            f"| {_struck(f'{found.mean:.4f}', record)} "
            f"| {f'{found.spread:.4f}' if found.num_seeds > 1 else ''} "
            f"| {len(record.seeds) or ''} | {_name(record, link_root)} | {track} "
            f"| {cell(record.author)} | {record.date} | {'' if size is None else f'{size:,}'} "
            f"| {status_words(record)} |"
        )
    return "\n".join(rows) + "\n"


def csv_table(records: Sequence[Record]) -> str:
    """The same as CSV, figures in full; what is unknown is empty."""
    rows = [_csv_row(record) for record in _ranked(records)]
    return sheet([*rows[0]] if rows else [], rows)


def _csv_row(record: Record) -> dict[str, Any]:
    found = record.val_bpb
    return {
        "track": record.track,
        "track_version": record.track_version or None,
        "name": record.name,
        "author": record.author,
        "github_id": record.github_id,
        "date": record.date,
        "val_bpb": found.mean,
        "val_bpb_std": found.spread if found.num_seeds > 1 else None,
        "seeds": len(record.seeds) or None,
        "claimed_bpb": record.claimed_bpb,
        "bytes": record.largest_bytes,
        "status": status_words(record),
        "based_on": record.based_on,
        "source": record.source,
        "hardware": record.hardware,
        "summary": record.summary,
    }


def status_words(record: Record) -> str:
    """What a reader should know before the score."""
    if record.withdrawn is not None:
        return f"withdrawn {record.withdrawn.date}: {cell(record.withdrawn.reason)}"
    return record.status.words


def update_readme(path: Path, table: str) -> None:
    """Replace what stands between the two markers of a Markdown file.

    Raises
        RecordError: the file cannot be read or has not exactly one pair of markers.
        OutputError: it cannot be written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RecordError(f"{path}: needs one line {BEGIN} and, after it, one line {END}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    write_atomic(path, f"{before}{BEGIN}\n{table}{END}{after}".encode())


def records_table(records: Sequence[Record], *, title: str = "") -> Table:
    """For a terminal, best first; fits 80 columns, so the track goes into the title."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("val_bpb", "spread", "n", "record", "author", "date", "status"):
        is_number = heading in ("val_bpb", "spread", "n")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for record in _ranked(records):
        found, num_seeds = record.val_bpb, len(record.seeds)
        spread = f"{found.spread:.4f}" if num_seeds > 1 else ""
        status = "withdrawn" if record.withdrawn else record.status.value
        cells = (f"{found.mean:.4f}", spread, str(num_seeds or ""), record.slug, record.author)
        table.add_row(*map(Text, (*cells, record.date, status)))
    return table


def runs_table(rows: Sequence[RunRow], *, title: str = "") -> Table:
    """For a terminal; in the order of `rows`. Fits 80 columns, so the track goes into the title."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("time", "recipe", "seed", "steps", "val_bpb", "bytes", "verdict"):
        is_number = heading in ("seed", "steps", "val_bpb", "bytes")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        bpb = "" if row.val_bpb is None else f"{row.val_bpb:.4f}"
        size = "" if row.num_bytes is None else f"{row.num_bytes:,}"
        cells = (_when(row.time), row.recipe, str(row.seed), f"{row.num_steps:,}", bpb, size)
        table.add_row(*map(Text, (*cells, row.verdict)))
    return table


def cell(text: str) -> str:
    """Text that cannot leave its cell of a Markdown table, nor call anybody."""
    return re.sub(r"[|<>\[\]\r\n`]", " ", text).replace("@", "@\u200b")


def _ranked(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.val_bpb.mean)


def _name(record: Record, link_root: str) -> str:
    """The record, linked to its folder if it has one here, else to where it was published."""
    if record.status is not Standing.PUBLISHED:
        return f"[{record.slug}]({link_root}/{record.track}/{record.name})"
    is_link = re.fullmatch(r"https://[\w./#?=&%+-]+", record.source)
    return f"[{record.slug}]({record.source})" if is_link else cell(record.slug)


def _struck(score: str, record: Record) -> str:
    return f"~~{score}~~" if record.withdrawn else score


def _when(time: str) -> str:
    """`11-22 10:55` by the clock on the wall; a time that is none stays as it is."""
    try:
        return datetime.datetime.fromisoformat(time).astimezone().strftime("%m-%d %H:%M")
    except ValueError:
        return time
