"""Protects a run against signals: whatever ends it and whenever, `--resume` brings it home."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from speedrun.clock import read_ledger
from speedrun.tracks.load import load_track
from speedrun.verify.provenance import provenance


def _wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read stdout up to the line with these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"ended before {words!r}: {process.stderr and process.stderr.read()}")


def _end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def _until(claim: Callable[[], bool], seconds: float = 60.0) -> None:
    stop = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < stop
        time.sleep(0.02)


def test_a_run_that_is_stopped_three_times_still_passes(contest, call, tmp_path, monkeypatch):
    track, out = tmp_path / "longer.toml", tmp_path / "runs"
    # Long enough to be hit in the middle of training twice.
    track.write_text(contest.track.read_text().replace("= 1.0", "= 3.0"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))

    first = contest.start("run", "--track", track, "--out", out)
    _wait_for(first, "step:10/")
    code, err = _end(first, signal.SIGINT)
    (folder,) = out.iterdir()
    checkpoint = folder / "checkpoint" / "state.safetensors"
    assert code == 130 and checkpoint.exists()
    assert err.startswith("error: interrupted after ") and err.count("\n") == 1
    assert f"speedrun run --resume {folder}" in err

    second = contest.start("run", "--resume", folder)
    _wait_for(second, "resumed:step:")
    saved = checkpoint.stat().st_mtime_ns
    _until(lambda: checkpoint.stat().st_mtime_ns > saved)
    assert _end(second, signal.SIGKILL)[0] == -signal.SIGKILL

    third = contest.start("run", "--resume", folder)
    _wait_for(third, "judging")
    code, err = _end(third, signal.SIGTERM)
    assert (code, err) == (143, "terminated\n")
    assert not list(scratch.glob("speedrun-judge-*"))
    assert not (out / "runs.jsonl").exists() and not (folder / "verdict.json").exists()

    last = call("run", "--resume", folder, "--json")
    assert last.code == 0, last.err
    done = json.loads(last.out)
    trained = [phase for phase in read_ledger(folder / "ledger.jsonl") if phase.on_budget]
    assert done["steps"] == max(phase.details["steps"] for phase in trained)
    assert 1.0 < sum(phase.seconds for phase in trained) <= 3.0
    assert "step:1/" not in last.err  # trained already: packed and judged only
    assert len((out / "runs.jsonl").read_text().splitlines()) == 1
    # Log and ledger still tell one story, though both were broken off three times.
    found = provenance(folder / "submission", load_track(str(track)))
    assert (found.status, found.evidence) == ("PASS", "")
