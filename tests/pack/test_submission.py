"""Protects the folder that is handed in: whole or absent, listed truly, counted to the byte."""

import dataclasses
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speedrun.errors import OutputError, SubmissionError
from speedrun.files import sha256_file
from speedrun.pack.submission import (
    FileEntry,
    SubmissionFacts,
    counted_bytes,
    read_manifest,
    write_submission,
)
from speedrun.tracks.load import Track

TRACK = Track(
    name="tiny",
    version=3,
    summary="",
    train_seconds=1,
    eval_seconds=1,
    cap_bytes=1_000_000,
    corpus="none",
    recipe="none",
    hardware="any",
)
FACTS = SubmissionFacts(
    name="test/run",
    seed=5,
    blurb="Counts and copies",
    author="Ada",
    date="2026-05-02",
    val_bpb=1.5,
    val_loss=2.5,
    step_stop=100,
    wallclock_seconds=0.9,
    eval_time_seconds=0.1,
    model_params=1234,
    hardware="any",
    pytorch_version="2.13.0",
    data_fingerprint="f" * 64,
)


def write(tmp_path: Path, **changes: Any) -> Path:
    log = tmp_path / "source.log"
    log.write_text("step:1/1\n")
    arguments = {
        "weights_bytes": b"w" * 1000,
        "bundle": b"c" * 234,
        "facts": FACTS,
        "logs": {"train.log": log, "ledger.jsonl": log},
        "track": TRACK,
    }
    out = tmp_path / "out" / "submission"
    write_submission(out, **arguments | changes)
    return out


def test_folder_holds_what_was_given(tmp_path: Path) -> None:
    out = write(tmp_path)
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert names == [
        "README.md",
        "logs/ledger.jsonl",
        "logs/train.log",
        "manifest.json",
        "model.srz",
        "submission.json",
        "train_gpt.py",
    ]
    assert (out / "model.srz").read_bytes() == b"w" * 1000
    assert (out / "logs/train.log").read_text() == "step:1/1\n"
    assert sorted(p.name for p in out.parent.iterdir()) == ["submission"]


def test_manifest_lists_every_other_file(tmp_path: Path) -> None:
    out = write(tmp_path)
    manifest = read_manifest(out)
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert manifest == {
        path.relative_to(out).as_posix(): FileEntry(path.stat().st_size, sha256_file(path))
        for path in files
    }


def test_bytes_are_counted_exactly(tmp_path: Path) -> None:
    out = write(tmp_path)
    size = counted_bytes(out, TRACK)
    assert (size.code, size.model, size.total) == (234, 1000, 1234)
    claims = json.loads((out / "submission.json").read_text())
    assert (claims["bytes_code"], claims["bytes_model"], claims["bytes_total"]) == (234, 1000, 1234)


def test_claims_use_the_keys_of_the_field(tmp_path: Path) -> None:
    claims = json.loads((write(tmp_path) / "submission.json").read_text())
    expected = {
        "schema_version": 1,
        "author": "Ada",
        "name": "test/run",
        "date": "2026-05-02",
        "track": "tiny",
        "track_version": 3,
        "val_bpb": 1.5,
        "val_loss": 2.5,
        "seed": 5,
        "step_stop": 100,
        "wallclock_seconds": 0.9,
        "data_fingerprint": "f" * 64,
    }
    assert claims | expected == claims


def test_same_input_same_folder(tmp_path: Path) -> None:
    first = write(tmp_path)
    second = write(tmp_path / "out")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_an_older_submission_is_not_overwritten(tmp_path: Path) -> None:
    out = write(tmp_path)
    before = sha256_file(out / "manifest.json")
    with pytest.raises(OutputError, match="submission"):
        write(tmp_path, weights_bytes=b"other")
    assert sha256_file(out / "manifest.json") == before
    assert [p.name for p in out.parent.iterdir()] == ["submission"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "submission.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_write_that_the_system_stops_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "sys.path.insert(0, 'tests/pack'); import test_submission as t;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "t.write(Path(sys.argv[1]), weights_bytes=bytes(60_000))"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OutputError: cannot write" in result.stderr
    assert "File too large" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_and_odd_logs_are_named(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"log 'train\.log' cannot be read"):
        write(tmp_path, logs={"train.log": tmp_path / "none"})
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(SubmissionError, match="needs a plain file name"):
            write(tmp_path, logs={name: tmp_path / "source.log"})
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, val_bpb=float("nan"))
    with pytest.raises(SubmissionError, match=r"submission\.json: a number is not finite"):
        write(tmp_path, facts=facts)


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ("", "cannot be read"),
        ("[" * 50_000, "cannot be read"),
        ("{}", "needs schema_version 1"),
        ('{"schema_version": 2, "files": {}}', "needs schema_version 1"),
        ('{"schema_version": 1, "files": {"a": 1}}', "'a' needs bytes and sha256"),
        ('{"schema_version": 1, "files": {"../a": 1}}', "not a path in the folder"),
        ('{"schema_version": 1, "files": {"/a": 1}}', "not a path in the folder"),
        ('{"schema_version": 1, "files": {"a\\u0000": 1}}', "not a path in the folder"),
        (" " * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_hostile_manifests_are_refused(tmp_path: Path, manifest: str, text: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(SubmissionError, match=text):
        read_manifest(tmp_path)


def test_missing_files_and_links_are_not_counted(tmp_path: Path) -> None:
    out = write(tmp_path)
    (out / "model.srz").unlink()
    with pytest.raises(SubmissionError, match=r"tiny: model\.srz cannot be counted"):
        counted_bytes(out, TRACK)
    (out / "model.srz").symlink_to(out / "README.md")
    with pytest.raises(SubmissionError, match=r"model\.srz is not a plain file"):
        counted_bytes(out, TRACK)
