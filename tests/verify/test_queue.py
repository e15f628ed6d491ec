"""Protects a queue that nobody watches: each entry gets a result, whatever becomes of its judge.

The judge is replaced by a script here that does what an entry's name says; `tests/cheats` has the
real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speedrun.errors import SubmissionError
from speedrun.verify import queue
from speedrun.verify.queue import Order, Result, judge_queue, list_queue, place_of, read_result
from speedrun.verify.verdict import Status

SCRIPT = """#!/bin/sh
# Called as: -m speedrun verify FOLDER --json --out FILE
name=$(basename "$4")
echo "$name" >> "{log}"
case "$name" in
    crash*) kill -9 $$ ;;
    error*) echo "error: out of luck" >&2; exit 2 ;;
    hang*) sleep 60 & sleep 60 ;;
    garbage*) echo '{{"status": "MAYBE"}}' > "$7"; exit 0 ;;
    nested*) printf '%20000s' | tr ' ' '[' > "$7"; exit 0 ;;
    slow*) sleep 0.4 ;;
esac
status=PASS
case "$name" in bad*) status=FAIL ;; esac
printf '{{"status": "%s", "submission": "%s", "results": [], "measurement": {{"bpb": 1.5}}}}' \\
    "$status" "$name" > "$7"
"""


@pytest.fixture(name="log")
def log_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the script was called for, a name a line."""
    script = tmp_path / "judge.sh"
    script.write_text(SCRIPT.format(log=tmp_path / "called"))
    script.chmod(0o755)
    monkeypatch.setattr(queue.sys, "executable", str(script))
    (tmp_path / "called").touch()
    return tmp_path / "called"


def fill(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "submission.json").write_text("{}")
    return list_queue(folder)


def judge(tmp_path: Path, entries: list[Path], **options: object) -> dict[str, Result]:
    order = Order(out=tmp_path / "out", **options)  # type: ignore[arg-type]
    return {r.name: r for r in judge_queue(entries, order, lambda result, is_new: None)}


def test_whatever_becomes_of_one_judge_the_others_go_on(tmp_path: Path, log: Path) -> None:
    names = ("bad", "crash", "error", "garbage", "good", "hang", "nested")
    found = judge(tmp_path, fill(tmp_path / "queue", *names), jobs=3, limit_s=1.5)
    assert found.keys() == {*names}
    assert (found["good"].status, found["good"].val_bpb) == (Status.PASS, 1.5)
    assert found["bad"].status is Status.FAIL
    for name, said in (
        ("crash", "ended with code -9"),
        ("error", "ended with code 2: error: out of luck"),
        ("hang", "not judged within 1.5 s"),
        ("garbage", "ended with code 0"),
        ("nested", "ended with code 0"),
    ):
        assert found[name].status is Status.UNDECIDED and said in found[name].reason, name
        written = json.loads((tmp_path / "out" / name / "verdict.json").read_text())
        assert written == {"status": "UNDECIDED", "reason": found[name].reason}
        assert said in (tmp_path / "out" / name / "reply.md").read_text()
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["name"] for row in rows] == sorted(names)
    assert not list((tmp_path / "out").glob(".*"))


def test_what_is_judged_is_not_judged_again_until_it_or_the_question_changes(
    tmp_path: Path, log: Path
) -> None:
    entries = fill(tmp_path / "queue", "a", "b")
    first = judge(tmp_path, entries)
    assert judge(tmp_path, entries) == first
    assert log.read_text().split() == ["a", "b"]
    (entries[0] / "more").write_text("changed")
    judge(tmp_path, entries)
    assert log.read_text().split() == ["a", "b", "a"]
    judge(tmp_path, entries, options=("--level", "prove"))
    assert log.read_text().split() == ["a", "b", "a", "a", "b"]
    place = tmp_path / "out" / "b" / "result.json"
    place.write_text(place.read_text()[:50])  # as no writer of ours would leave it
    judge(tmp_path, entries, options=("--level", "prove"))
    assert log.read_text().split()[5:] == ["b"]


def test_no_more_than_so_many_are_judged_at_a_time(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    plain = queue._run_judge

    def counted(*words: object) -> tuple[int | None, str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return plain(*words)  # type: ignore[arg-type]
        finally:
            running -= 1

    monkeypatch.setattr(queue, "_run_judge", counted)
    judge(tmp_path, fill(tmp_path / "queue", *(f"slow{n}" for n in range(5))), jobs=2)
    assert most == 2


def test_links_and_folders_of_anything_get_a_verdict_that_says_so(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_FILES", 5)
    fill(tmp_path / "queue", "good", "many")
    for number in range(6):
        (tmp_path / "queue" / "many" / str(number)).touch()
    (tmp_path / "queue" / "empty").mkdir()
    (tmp_path / "queue" / "link").symlink_to("good")
    (tmp_path / "queue" / "README.md").write_text("a queue may explain itself")
    (tmp_path / "queue" / ".hidden").mkdir()
    found = judge(tmp_path, list_queue(tmp_path / "queue"))
    assert found.keys() == {"good", "many", "empty", "link"}
    assert "more than 5 files" in found["many"].reason
    assert "no submission.json" in found["empty"].reason
    assert "it is a link" in found["link"].reason
    assert log.read_text().split() == ["good"]


def test_a_submission_is_a_queue_of_one(tmp_path: Path) -> None:
    (entry,) = fill(tmp_path / "queue", "only")
    assert list_queue(entry) == [entry]
    with pytest.raises(SubmissionError, match="nowhere is not a folder"):
        list_queue(tmp_path / "nowhere")


def test_names_that_are_no_plain_names_get_a_place_of_their_own(tmp_path: Path, log: Path) -> None:
    hostile = "a | b` @everyone <img src=x> [link](http:evil)\n# title"
    entries = fill(tmp_path / "queue", hostile, "x..y", "bad`name")
    found = judge(tmp_path, entries)
    assert len(found) == 3
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir() if p.is_dir()} == {place_of(e, out).name for e in entries}
    assert all(place_of(entry, out).parent == out for entry in entries)
    for page in (out / "summary.md", place_of(entries[1], out) / "reply.md"):
        for line in page.read_text().splitlines():
            outside = "".join(line.split("`")[::2])
            assert "@" not in outside and "<img" not in outside and "](" not in outside
    lines = (out / "summary.md").read_text().splitlines()
    assert {line.count("|") for line in lines if line.startswith("|")} == {6}


def test_a_killed_queue_leaves_no_judge_behind_and_goes_on_where_it_was(
    tmp_path: Path, log: Path
) -> None:
    fill(tmp_path / "queue", "a", "hang", "z")
    program = (
        "import sys; from pathlib import Path; from speedrun.verify import queue\n"
        f"queue.sys.executable = {str(tmp_path / 'judge.sh')!r}\n"
        f"entries = queue.list_queue(Path({str(tmp_path / 'queue')!r}))\n"
        f"order = queue.Order(out=Path({str(tmp_path / 'out')!r}))\n"
        "queue.judge_queue(entries, order, lambda result, is_new: None)\n"
    )
    first = subprocess.Popen([sys.orig_argv[0], "-c", program])
    while "hang" not in log.read_text().split():
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert read_result(tmp_path / "out" / "a") is not None
    assert read_result(tmp_path / "out" / "hang") is None
    if sys.platform == "linux":
        script = os.fsencode(tmp_path / "judge.sh")
        for _ in range(200):
            if not any(script in _command(pid) for pid in Path("/proc").glob("[0-9]*")):
                break
            time.sleep(0.02)
        else:
            pytest.fail("the killed queue's judge is still there")
    found = judge(tmp_path, list_queue(tmp_path / "queue"), limit_s=0.5)
    assert log.read_text().split() == ["a", "hang", "hang", "z"]
    assert [each.status for each in found.values()] == ["PASS", "UNDECIDED", "PASS"]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
