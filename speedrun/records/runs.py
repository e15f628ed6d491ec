"""The local table of runs: one JSON line per run, safe to append to from several processes."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from speedrun.errors import OutputError, RecordError

TABLE = "runs.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What the table remembers of a run; everything else is in its folder."""

    time: str
    """ISO 8601, UTC."""
    folder: str
    recipe: str
    track: str
    track_version: int
    seed: int
    val_bpb: float | None
    """Score of the packed weights; None if it was not measured."""
    num_bytes: int | None
    """Counted bytes of the submission."""
    num_steps: int
    train_seconds: float
    verdict: str
    """PASS, FAIL, UNDECIDED, or `unverified`."""
    hardware: str = ""
    note: str = ""


def append_run(row: RunRow, folder: Path) -> None:
    """Add a row to the table in `folder` (usually `runs`) and have it on disk before returning.

    Raises
        OutputError: the table cannot be written.
    """
    path = folder / TABLE
    line = json.dumps(dataclasses.asdict(row), sort_keys=True).encode() + b"\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A writer that was killed leaves half a line: it keeps that line to itself.
            size = os.fstat(file.fileno()).st_size
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; is the disk full?") from error


def read_runs(folder: Path) -> list[RunRow]:
    """Rows of the table in `folder`, oldest first, without lines that a killed writer cut short.

    Raises
        RecordError: the table cannot be read, or a whole line is not a row.
    """
    path = folder / TABLE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("}"):
            continue
        try:
            rows.append(RunRow(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise RecordError(
                f"{path}, line {number}: not a run: {error}; remove the line"
            ) from error
    return rows
