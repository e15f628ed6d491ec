"""Protects the runs table from processes that write at once, and from those that die writing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from speedrun.errors import OutputError, RecordError
from speedrun.records.runs import TABLE, RunRow, append_run, read_runs

ROW = RunRow(
    time="2026-01-02T03:04:05Z",
    folder="runs/x",
    recipe="pocket/default",
    track="pocket",
    track_version=1,
    seed=42,
    val_bpb=2.0,
    num_bytes=999_999,
    num_steps=100,
    train_seconds=59.9,
    verdict="PASS",
)


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    assert read_runs(tmp_path) == []
    rows = [dataclasses.replace(ROW, seed=seed) for seed in range(3)]
    for row in rows:
        append_run(row, tmp_path / "runs")
    assert read_runs(tmp_path / "runs") == rows


def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    program = (
        "import sys, dataclasses; from pathlib import Path\n"
        "from speedrun.records.runs import RunRow, append_run\n"
        f"for seed in range(40): append_run(dataclasses.replace({ROW!r}, seed=seed), "
        "Path(sys.argv[1]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(row.seed for row in read_runs(tmp_path)) == sorted([*range(40)] * 2)


def test_half_a_line_of_a_killed_writer_costs_only_itself(tmp_path: Path) -> None:
    append_run(ROW, tmp_path)
    with (tmp_path / TABLE).open("a") as file:
        file.write('{"time": "2026')
    assert read_runs(tmp_path) == [ROW]
    append_run(ROW, tmp_path)
    assert read_runs(tmp_path) == [ROW, ROW]


@pytest.mark.parametrize("line", ["{}", '{"time": 1, "unknown": 2}', "[}"])
def test_a_line_that_is_no_run_is_named(tmp_path: Path, line: str) -> None:
    append_run(ROW, tmp_path)
    with (tmp_path / TABLE).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match="line 2"):
        read_runs(tmp_path)


def test_a_table_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / TABLE).mkdir()
    with pytest.raises(OutputError, match=TABLE):
        append_run(ROW, tmp_path)
