"""Protects the judge's machine and its data from the code it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speedrun.errors import SubmissionError
from speedrun.verify.sandbox import Cell, Limits, why_unsandboxed

needs_bubblewrap = pytest.mark.skipif(bool(why_unsandboxed()), reason=why_unsandboxed() or "-")


Done = subprocess.CompletedProcess[str]


def run(tmp_path: Path, code: str, limits: Limits | None = None) -> Done:
    (tmp_path / "train_gpt.py").write_text(code)
    (tmp_path / "model.srz").write_bytes(b"weights")
    with Cell(tmp_path, limits=limits) as cell, cell.start(["train_gpt.py"]) as process:
        out, err = process.popen.communicate(timeout=30)
    return Done([], process.popen.returncode, out.decode(), err.decode())


def answer(tmp_path: Path, expression: str) -> object:
    done = run(tmp_path, f"import json, os, sys\nprint(json.dumps({expression}))")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_the_counted_files_are_there_and_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "key")
    (tmp_path / "helper.py").write_text("")
    assert answer(tmp_path, "sorted(os.listdir())") == ["model.srz", "train_gpt.py"]
    # bubblewrap itself sets PWD.
    names = answer(tmp_path, "sorted({*os.environ} - {'PWD'})")
    assert names == ["HOME", "LANG", "OMP_WAIT_POLICY", "PATH", "TMPDIR", "USER"]


def test_memory_is_limited(tmp_path: Path) -> None:
    done = run(tmp_path, "bytearray(10**9)", Limits(memory_bytes=500_000_000))
    assert "MemoryError" in done.stderr


def test_files_are_limited(tmp_path: Path) -> None:
    code = "import os\nopen(os.environ['TMPDIR'] + '/x', 'wb').write(bytes(2_000_000))"
    assert "OSError" in run(tmp_path, code, Limits(file_bytes=1_000_000)).stderr


def test_the_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"train_gpt\.py"):
        Cell(tmp_path)
    (tmp_path / "train_gpt.py").touch()
    (tmp_path / "model.srz").touch()
    with Cell(tmp_path) as cell:
        assert cell.files.exists()
    assert not cell.files.parent.exists()


@needs_bubblewrap
def test_nothing_outside_can_be_read_written_or_reached(tmp_path: Path) -> None:
    outside = tmp_path / "validation.txt"
    outside.write_text("the text")
    assert answer(tmp_path, f"os.path.exists({str(outside)!r})") is False
    assert answer(tmp_path, f"os.path.exists({str(Path.home() / '.cache')!r})") is False
    for place in ("/usr/x", "model.srz", "/judged/x"):
        assert "Error" in run(tmp_path, f"open({place!r}, 'ab')").stderr
    network = "import socket\nsocket.create_connection(('1.1.1.1', 53), 2)"
    assert "unreachable" in run(tmp_path, network).stderr
    assert answer(tmp_path, "len([p for p in os.listdir('/proc') if p.isdigit()])") in (1, 2, 3)


@needs_bubblewrap
def test_an_installed_speedrun_cannot_be_used(tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in run(tmp_path, "import speedrun.bpb").stderr


@needs_bubblewrap
def test_libraries_can_be_used(tmp_path: Path) -> None:
    assert run(tmp_path, "import numpy, zstandard").returncode == 0


def test_the_interpreter_is_this_one(tmp_path: Path) -> None:
    assert answer(tmp_path, "sys.version") == sys.version
