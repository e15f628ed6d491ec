"""Protects the judge's machine and its data from the code it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import speedrun
from speedrun.errors import SubmissionError
from speedrun.verify import sandbox, view, walls
from speedrun.verify.library import stand_in
from speedrun.verify.sandbox import Cell, Limits
from speedrun.verify.walls import Walls, why_unsandboxed

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


@needs_bubblewrap
def test_devices_are_there_only_when_they_are_named(tmp_path: Path) -> None:
    code = "import os\nprint(sorted(os.listdir('/dev')))"
    assert "'kmsg'" not in run(tmp_path, code).stdout
    named = "/dev/kmsg" if Path("/dev/kmsg").exists() else "/dev/null"
    found = run(tmp_path, code, Limits(devices=(named, "/dev/not-there")))
    assert f"'{Path(named).name}'" in found.stdout


@needs_bubblewrap
def test_processes_of_one_cell_share_nothing_but_the_files(tmp_path: Path) -> None:
    (tmp_path / "model.srz").touch()
    (tmp_path / "train_gpt.py").write_text(
        "import os, sys\n"
        "open('/tmp/mine', 'x').close()\n"
        "found = [n for n in os.listdir('/tmp') if not sys.prefix.startswith(f'/tmp/{n}')]\n"
        "print(found, len([p for p in os.listdir('/proc') if p.isdigit()]) < 4)\n"
        "sys.stdout.flush(); sys.stdin.read()"
    )
    with (
        Cell(tmp_path) as cell,
        cell.start(["train_gpt.py"]) as one,
        cell.start(["train_gpt.py"]) as two,
    ):
        for process in (one, two):
            assert process.popen.stdout is not None
            assert process.popen.stdout.readline() == b"['mine'] True\n"
        assert one.store.descriptor != two.store.descriptor


@pytest.mark.parametrize("kind", ["walls", "no walls"])
def test_more_can_be_shown_and_one_folder_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "no walls":
        monkeypatch.setattr(sandbox, "best_walls", lambda: (Walls.NONE, "there is none"))
    elif why_unsandboxed():
        pytest.skip(why_unsandboxed())
    data, folder = tmp_path / "data", tmp_path / "submission"
    data.mkdir()
    folder.mkdir()
    (data / "train.bin").write_text("train")
    (data / "val.bin").write_text("val")
    (folder / "model.srz").touch()
    (folder / "train_gpt.py").write_text(
        "import os, sys, time\n"
        "data, out = sys.argv[1:3]\n"
        "print(open(f'{data}/train.bin').read(), os.path.exists(f'{data}/val.bin'))\n"
        "open(f'{out}/model', 'w').write('made')\n"
        "sys.stdout.flush()\n"
        "for number in range(int(sys.argv[3])):\n"
        "    open(f'{out}/{number}', 'wb').write(bytes(100_000))\n"
        "    time.sleep(0.01)\n"
    )
    limits = Limits(folder_bytes=1_000_000)
    with Cell(folder, limits=limits, allow_unsandboxed=True) as cell:
        for files, said in ((0, ""), (1_000, "bytes, 1,000,000 are allowed")):
            out = tmp_path / f"out{files}"
            out.mkdir()
            out.chmod(0o777)
            places = cell.inside(f"data{files}"), cell.inside(f"out{files}")
            with cell.start(
                ["train_gpt.py", *places, str(files)],
                readable={f"data{files}/train.bin": data / "train.bin"},
                writable={f"out{files}": out},
            ) as process:
                text, _ = process.popen.communicate(timeout=60)
            assert text.decode().split() == ["train", "False"]
            assert (out / "model").read_text() == "made"
            assert said in process.ended_for and bool(said) == bool(process.ended_for)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_an_old_bubblewrap_is_given_only_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = view.machine(stand_in())
    assert {"--perms", "--size", "--disable-userns"} <= {
        *walls.room(Walls.NAMESPACE, visible, scratch_bytes=1)
    }
    monkeypatch.setattr(walls, "_knows", lambda option: False)
    room = walls.room(Walls.NAMESPACE, visible, scratch_bytes=1)
    assert not {"--perms", "--size", "--disable-userns", "1777", "0755"} & {*room}
    if not why_unsandboxed():
        subprocess.run([*room, "--", sys.executable, "-I", "-S", "-c", ""], check=True)


AS_USER = """
set -e
mkdir "$KEEP"
for path in $NEEDED; do mkdir -p "$KEEP$path"; mount --rbind "$path" "$KEEP$path"; done
for path in $CLOSED; do mount -t tmpfs -o mode=755 none "$path"; done
for path in $NEEDED; do mkdir -p "$path"; mount --rbind "$KEEP$path" "$path"; done
exec setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps=-all "$@"
"""
BY_USER = """
import sys
from pathlib import Path
from speedrun.verify.sandbox import Cell
from speedrun.verify.walls import best_walls
with Cell(Path(sys.argv[1])) as cell, cell.start(["train_gpt.py"]) as process:
    out, err = process.popen.communicate(timeout=60)
    sys.stderr.buffer.write(err)
print(best_walls()[0].name, cell.isolation, out.decode().strip())
"""


@needs_bubblewrap
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="only root, with setpriv and unshare of util-linux, can become somebody else",
)
def test_an_ordinary_user_can_judge_too(tmp_path: Path) -> None:
    """In a view of this machine where Python and this package lie open to everybody."""
    place = Path("/tmp") / f"speedrun-ordinary-{os.getpid()}"
    place.mkdir()
    try:
        (place / "train_gpt.py").write_text(
            "import os, resource\n"
            "print(os.getuid(), resource.getrlimit(resource.RLIMIT_NPROC)[0] < 10_000)"
        )
        (place / "model.srz").touch()
        cache = place / "cache"
        cache.mkdir()
        made = stand_in()
        shutil.copytree(made, cache / made.name)
        for path in (place, *place.rglob("*")):
            os.chown(path, 12345, 12345)
        needed = {Path(sys.prefix), Path(sys.base_prefix), Path(speedrun.__file__).parents[1]}
        closed = {
            parent
            for path in needed
            for parent in path.parents
            if parent != Path("/") and not parent.stat().st_mode & 0o001
        }
        done = subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-c", AS_USER, "sh"),
                *(sys.executable, "-c", BY_USER, str(place)),
            ],
            env={
                "PATH": os.environ["PATH"],
                "KEEP": str(place / "keep"),
                "NEEDED": " ".join(map(str, sorted(needed))),
                "CLOSED": " ".join(map(str, sorted(closed)[:1])),
                "PYTHONPATH": str(Path(speedrun.__file__).parents[1]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "SPEEDRUN_CACHE": str(cache),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        shutil.rmtree(place)
    assert done.stdout.split() == ["NAMESPACE", "bubblewrap", "1000", "True"], done.stderr
