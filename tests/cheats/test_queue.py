"""Queues of honest and hostile submissions, judged by the program itself, killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

import speedrun
from tests.cheats.conftest import Court, read_predictor

ROOT = Path(speedrun.__file__).parents[1]
HOSTILE = {
    "fork-bomb": ("fork_bomb", 1.0, "predictor"),
    "not-a-number": ("not_a_number", None, "distribution"),
    "too-sure": ("infinitely_sure", None, "distribution"),
    "half": ("answers_half", 1.0, "coverage"),
}
"""Folder: predictor, claim (None: what it scores), and the rule that it does not pass."""


def start(court: Court, queue: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """The program, at level score."""
    track = out.with_name("track.toml")
    track.write_text(tomli_w.dumps(court.track.to_dict() | {"eval_seconds": 300.0}))
    data = court.dataset.folder
    command = [sys.executable, "-m", "speedrun", "judge", str(queue), "--out", str(out)]
    command += ["--level", "score", "--track", str(track), "--data", str(data), *words]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill(court: Court, queue: Path, honest: int, hostile: list[str]) -> None:
    queue.mkdir()
    # Logs and ledgers of the court lie beside a submission; in a queue they would be in the way.
    first = court.submit(read_predictor("honest/pair_counts"), out=queue.parent / "honest")
    for number in range(honest):
        shutil.copytree(first, queue / f"honest-{number:02}")
    for name in hostile:
        predictor, claim, _ = HOSTILE[name]
        source = read_predictor(f"predictors/{predictor}")
        made = court.submit(source, out=queue.parent / name, claim=claim)
        shutil.copytree(made, queue / name)


def statuses(out: Path) -> dict[str, str]:
    return {row["name"]: row["status"] for row in json.loads((out / "summary.json").read_text())}


def test_a_queue_of_four_gets_four_verdicts(court: Court, tmp_path: Path) -> None:
    fill(court, tmp_path / "queue", 1, ["not-a-number"])
    shutil.copytree(tmp_path / "queue" / "honest-00", tmp_path / "queue" / "changed")
    (tmp_path / "queue" / "changed" / "README.md").write_text("another text")
    (tmp_path / "queue" / "linked").symlink_to(tmp_path / "queue" / "honest-00")
    process = start(court, tmp_path / "queue", tmp_path / "out", "--jobs", "2")
    said, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert statuses(tmp_path / "out") == {
        "changed": "FAIL",
        "honest-00": "PASS",
        "linked": "FAIL",
        "not-a-number": "FAIL",
    }
    assert "4 verdicts" in said
    reply = (tmp_path / "out" / "not-a-number" / "reply.md").read_text()
    assert "**FAIL** `distribution`" in reply and "to mend it:" in reply


@pytest.mark.slow
def test_twenty_with_five_hostile_ones_killed_in_the_middle_lose_nothing(
    court: Court, tmp_path: Path
) -> None:
    queue, out = tmp_path / "queue", tmp_path / "out"
    fill(court, queue, 15, [*HOSTILE])
    (queue / "linked").symlink_to(queue / "honest-00")
    assert len(list(queue.iterdir())) == 20
    first = start(court, queue, out, "--jobs", "2")
    while len(list(out.glob("*/result.json"))) < 8:
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    second = start(court, queue, out, "--jobs", "2")
    _, err = second.communicate(timeout=1_200)
    assert second.returncode == 1, err
    found = statuses(out)
    assert len(found) == 20 and len(list(out.glob("*/verdict.json"))) == 20
    assert {path: path.stat().st_mtime_ns for path in before} == before  # none was judged twice
    assert [name for name, status in found.items() if status == "PASS"] == [
        f"honest-{number:02}" for number in range(15)
    ]
    assert found["linked"] == "FAIL"
    for name, (_, _, rule) in HOSTILE.items():
        verdict = json.loads((out / name / "verdict.json").read_text())
        states = {result["id"]: result["status"] for result in verdict["results"]}
        assert verdict["status"] == states[rule] == "FAIL", (name, states)
