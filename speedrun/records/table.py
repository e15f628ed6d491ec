"""Records and runs as tables: Markdown between two markers of a README, and on a terminal."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from speedrun.errors import RecordError
from speedrun.files import write_atomic
from speedrun.records.record import Record
from speedrun.records.runs import RunRow

BEGIN, END = "<!-- records:begin -->", "<!-- records:end -->"


def markdown_table(records: Sequence[Record], *, link_root: str = "records") -> str:
    """Rows of one table, best first, each linked to its folder; empty text without records."""
    if not records:
        return ""
    rows = [
        "| val_bpb | spread | seeds | record | track | author | date | bytes |",
        "|---" * 8 + "|",
    ]
    for record in sorted(records, key=lambda record: record.val_bpb.mean):
        found = record.val_bpb
        largest = max(seed.num_bytes for seed in record.seeds)
        link = f"[{record.slug}]({link_root}/{record.track}/{record.name})"
        rows.append(
            f"| {found.mean:.4f} | {found.spread:.4f} | {found.num_seeds} | {link} | "
            f"{record.track} v{record.track_version} | {_cell(record.author)} | {record.date} | "
            f"{largest:,} |"
        )
    return "\n".join(rows) + "\n"


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


def records_table(records: Sequence[Record]) -> Table:
    """For a terminal; best first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("val_bpb", "record", "track", "author", "date"):
        table.add_column(heading, overflow="fold")
    for record in sorted(records, key=lambda record: record.val_bpb.mean):
        track = f"{record.track} v{record.track_version}"
        cells = (str(record.val_bpb), record.slug, track, record.author, record.date)
        table.add_row(*map(Text, cells))
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


def _when(time: str) -> str:
    """`11-22 10:55` by the clock on the wall; a time that is none stays as it is."""
    try:
        return datetime.datetime.fromisoformat(time).astimezone().strftime("%m-%d %H:%M")
    except ValueError:
        return time


def _cell(text: str) -> str:
    """Text that cannot leave its cell of a Markdown table."""
    return re.sub(r"[|<>\[\]\r\n`]", " ", text)
