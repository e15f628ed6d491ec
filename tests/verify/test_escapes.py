"""Protects the machine that judges: every way out of a cell is tried by a real process in one.

The tries are in `escapes.py`, each under its name:

network    IPv4, IPv6, sockets by abstract name and by path, the internet, name servers, sockets
           that no network namespace holds (the host of a virtual machine, raw packets)
files      the text by its path, home, data set, cache and repository, through other processes'
           roots, environments, inherited descriptors, what others keep in /tmp and /dev/shm,
           memory of the machine
corpus     the library's source anywhere, modules of the validation text, what they say
writing    anywhere, the counted files, settings of the kernel
processes  seeing, signalling and tracing the judge, killing the guard, becoming root, programs
           that run as root, mounting, namespaces made or entered, another root, rare system calls,
           system calls by other numbers, terminals
along      variables, modules beside the script, core dumps, descriptors without end, lifted
           limits, a store cut short under the judge
bombs      processes, threads, memory of one and of many, files, daemons, an end to patience
the next   whatever one process leaves, the next one on the same cell does not find: files, stores,
           shared memory, times of devices and of files that it read, pages in memory, numbers
the files  links in place of the counted files, and copies that change while they are judged
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import speedrun
from speedrun.data import stdlib
from speedrun.data.corpus import cache_folder
from speedrun.errors import SubmissionError
from speedrun.verify import library, sandbox
from speedrun.verify.sandbox import Cell, Limits
from speedrun.verify.walls import Walls, why_unsandboxed

TRIES = Path(__file__).with_name("escapes.py")
_spec = importlib.util.spec_from_file_location("escapes", TRIES)
assert _spec is not None and _spec.loader is not None
escapes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(escapes)

REAL = (
    *("connect_by_ipv4", "connect_to_an_abstract_socket", "connect_to_a_socket_by_path"),
    *("read_a_file_by_path", "list_the_home_the_data_and_the_cache", "read_environments"),
    *("read_the_source_of_the_library", "import_a_hidden_module", "read_what_a_hidden_module_says"),
    *("find_what_others_keep_in_tmp_and_shared_memory", "see_the_judge"),
    *(
        "trace_a_process",
        "call_what_a_predictor_has_no_use_for",
        "open_a_socket_that_no_namespace_holds",
    ),
)
"""Tries that succeed where there are no walls, and do no harm there."""
needs_walls = pytest.mark.skipif(bool(why_unsandboxed()), reason=why_unsandboxed() or "-")


@contextlib.contextmanager
def bait(folder: Path) -> Iterator[dict[str, Any]]:
    """Something to get at: open sockets, a readable secret, variables, an open descriptor."""
    secret = folder / "validation.txt"
    secret.write_text("the text")
    secret.chmod(0o644)
    named = f"speedrun-bait-{os.getpid()}"
    shared = Path("/dev/shm", named)
    shared.write_text("shared")
    servers = [
        socket.socket(socket.AF_INET),
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_UNIX),
    ]
    servers[0].bind(("127.0.0.1", 0))
    servers[1].bind("\0" + named)
    servers[2].bind(str(folder / "socket"))
    port6 = 0
    with contextlib.suppress(OSError):
        six = socket.socket(socket.AF_INET6)
        six.bind(("::1", 0))
        servers.append(six)
        port6 = six.getsockname()[1]

    def answer(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                client.sendall(b"reached")
                client.close()

    for server in servers:
        server.listen()
        threading.Thread(target=answer, args=(server,), daemon=True).start()
    inherited = os.open(secret, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    neighbour = subprocess.Popen(["sleep", "300"], env={"SECRET": "a password"})
    try:
        yield {
            "port": servers[0].getsockname()[1],
            "port6": port6,
            "abstract": named,
            "socket": str(folder / "socket"),
            "secret": str(secret),
            "home": str(Path.home()),
            "data": str(folder),
            "cache": str(cache_folder()),
            "repository": str(Path(speedrun.__file__).parents[1]),
            "password": "a password",
            "judge": os.getpid(),
        }
    finally:
        neighbour.kill()
        neighbour.wait()
        os.close(inherited)
        for server in servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
        shared.unlink()


def submission(folder: Path) -> Path:
    """The tries as a submission, with helpers that must not be found."""
    folder.mkdir()
    (folder / "train_gpt.py").write_bytes(TRIES.read_bytes())
    (folder / "model.srz").write_bytes(b"weights")
    for name in ("helper.py", "sitecustomize.py", "usercustomize.py"):
        (folder / name).write_text("import os; os.environ['CUSTOMIZED'] = 'yes'")
    (folder / "helper.pth").write_text("import os; os.environ['CUSTOMIZED'] = 'yes'")
    return folder


def tell(cell: Cell, given: dict[str, Any]) -> Any:
    """What the tries print."""
    with cell.start(["train_gpt.py", json.dumps(given)]) as process:
        out, err = process.popen.communicate(timeout=60)
    assert process.popen.returncode == 0, (err.decode(), process.ended_for)
    return json.loads(out)


@pytest.fixture(scope="module", name="tried")
def tried_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bait")
    with pytest.MonkeyPatch.context() as patch, bait(folder) as given:
        for name in ("SECRET", "LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT"):
            patch.setenv(name, "" if name == "LD_PRELOAD" else given["password"])
        # Only numpy is asked what it imports: torch takes its time.
        patch.setattr(library, "FRAMEWORKS", ("numpy",))
        hidden = ["sched.py", "copyreg.py", "pydoc/await", "../../etc/passwd", "no/such.py"]
        with Cell(submission(folder / "submission"), hidden_documents=hidden) as cell:
            return dict(tell(cell, given | {"do": "try"}))


@needs_walls
@pytest.mark.parametrize("name", escapes.ESCAPES)
def test_the_walls_hold_against(tried: dict[str, Any], name: str) -> None:
    assert not tried[name], f"{tried[name]}"


@pytest.fixture(name="no_walls")
def no_walls_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "best_walls", lambda: (Walls.NONE, "there is none"))


@pytest.mark.usefixtures("no_walls")
def test_the_tries_are_real_for_without_walls_they_succeed(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    with bait(tmp_path) as given, Cell(folder, allow_unsandboxed=True) as cell:
        got = tell(cell, given | {"do": "try", "names": REAL})
    assert [name for name in REAL if not got[name]] == []


@needs_walls
def test_what_one_process_leaves_the_next_does_not_find(tmp_path: Path) -> None:
    with Cell(submission(tmp_path / "submission")) as cell:
        left = tell(cell, {"do": "leave"})
        assert {"/tmp/left", "/dev/shm/left", "store"} <= {*left}
        assert not {*left} & {"left", "/judged/left"}
        assert tell(cell, {"do": "find"}) == []


@needs_walls
def test_reading_a_shared_file_leaves_no_trace_in_its_times(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    (folder / "train_gpt.py").write_text("import sys; print(len(open(sys.argv[1], 'rb').read()))")
    shared = library.stand_in() / "this.pyc"
    inside = Path(stdlib.library_folder(), "this.pyc")
    os.utime(shared, (1, 1))  # so old that any reading would be noted
    with Cell(folder) as cell, cell.start(["train_gpt.py", str(inside)]) as process:
        out, _ = process.popen.communicate(timeout=60)
    assert int(out) == shared.stat().st_size
    assert shared.stat().st_atime == 1


@pytest.mark.usefixtures("no_walls")
def test_without_walls_the_next_process_still_has_its_own_scratch_and_copies(
    tmp_path: Path,
) -> None:
    with Cell(submission(tmp_path / "submission"), allow_unsandboxed=True) as cell:
        left = tell(cell, {"do": "leave"})
        assert "left" in left
        found = tell(cell, {"do": "find"})
        Path("/tmp/left").unlink()
        Path("/dev/shm/left").unlink()
    assert not {*found} & {"left", "store"}


BOMBS = {
    # Eight generations, so that a cell that fails to stop it does not take the machine along.
    "processes": ("for _ in range(8): os.fork()\ntime.sleep(20)", "processes and threads"),
    "threads": (
        "threading.stack_size(65536)\n"
        "for _ in range(400): threading.Thread(target=time.sleep, args=(20,)).start()",
        "processes and threads",
    ),
    "memory": (
        "for _ in range(20):\n if not os.fork(): x = bytearray(30_000_000); time.sleep(20)\n"
        "time.sleep(20)",
        "bytes of memory",
    ),
    "processor": ("while True: pass", "s of processors"),
    "sleep": ("time.sleep(20)", "ran for more than"),
}
SMALL = Limits(
    num_processes=100, memory_bytes=300_000_000, cpu_s=20.0, wall_s=40.0, scratch_bytes=20_000_000
)
# The one limit that a bomb is to meet first, on however slow a machine.
TIGHT = {"processor": replace(SMALL, cpu_s=0.5), "sleep": replace(SMALL, wall_s=0.3)}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("walls", ["walls", "no walls"])
def test_a_bomb_ends_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, walls: str
) -> None:
    if walls == "no walls":
        monkeypatch.setattr(sandbox, "best_walls", lambda: (Walls.NONE, "there is none"))
    elif why_unsandboxed():
        pytest.skip(why_unsandboxed())
    code, reason = BOMBS[name]
    folder = submission(tmp_path / "submission")
    (folder / "train_gpt.py").write_text(f"import os, threading, time\n{code}")
    with Cell(folder, limits=TIGHT.get(name, SMALL), allow_unsandboxed=True) as cell:
        with cell.start(["train_gpt.py", token := f"bomb-{os.getpid()}-{name}"]) as process:
            process.popen.communicate(timeout=60)
        assert reason in process.ended_for
    assert running(token) == []


def running(token: str) -> list[str]:
    """Processes of this machine that were given a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if token.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@needs_walls
def test_files_without_end_fill_the_scratch_only(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    (folder / "train_gpt.py").write_text(
        "import os\nfor folder in ('/tmp', '/dev/shm'):\n"
        " written = 0\n"
        " try:\n"
        "  for number in range(100):\n"
        "   with open(f'{folder}/{number}', 'wb') as file: written += file.write(bytes(1 << 20))\n"
        " except OSError as error: print(error.errno, written)"
    )
    with Cell(folder, limits=SMALL) as cell, cell.start(["train_gpt.py"]) as process:
        out, _ = process.popen.communicate(timeout=60)
    assert [line.split()[0] for line in out.decode().splitlines()] == ["28", "28"]  # ENOSPC
    assert all(int(line.split()[1]) <= 20_000_000 for line in out.decode().splitlines())


@pytest.mark.parametrize("walls", ["walls", "no walls"])
def test_a_daemon_ends_with_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walls: str
) -> None:
    if walls == "no walls":
        monkeypatch.setattr(sandbox, "best_walls", lambda: (Walls.NONE, "there is none"))
    elif why_unsandboxed():
        pytest.skip(why_unsandboxed())
    folder = submission(tmp_path / "submission")
    (folder / "train_gpt.py").write_text(
        "import os, time\n"
        "if not os.fork():\n"
        " os.setsid()\n"
        " if not os.fork():\n"
        "  for number in range(3): os.close(number)\n"
        "  time.sleep(60)\n"
        " os._exit(0)\n"
        "os.wait()\nprint('left one behind', flush=True)\ntime.sleep(60)"
    )
    token = f"daemon-{os.getpid()}"
    with (
        Cell(folder, allow_unsandboxed=True) as cell,
        cell.start(["train_gpt.py", token]) as process,
    ):
        assert process.popen.stdout is not None
        assert process.popen.stdout.readline() == b"left one behind\n"
        assert len(running(token)) >= 3
    assert running(token) == []


def test_a_link_in_place_of_a_counted_file_is_not_followed(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    (folder / "model.srz").unlink()
    (folder / "model.srz").symlink_to("/dev/zero")
    with pytest.raises(SubmissionError, match=r"model\.srz: cannot be read"):
        Cell(folder, allow_unsandboxed=True)
    (folder / "model.srz").unlink()
    os.mkfifo(folder / "model.srz")
    with pytest.raises(SubmissionError, match=r"model\.srz is not a plain file"):
        Cell(folder, allow_unsandboxed=True)


def test_what_is_swapped_after_the_copy_does_not_run(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    with Cell(folder, allow_unsandboxed=True) as cell:
        (folder / "train_gpt.py").unlink()
        (folder / "train_gpt.py").symlink_to("/etc/hostname")
        assert tell(cell, {"do": "find"}) == []


@pytest.mark.usefixtures("no_walls")
def test_copies_that_change_while_they_are_judged_are_not_started_again(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    with Cell(folder, allow_unsandboxed=True) as cell:
        code = f"open({str(cell.files / 'model.srz')!r}, 'ab').write(b'more')"
        (cell.files / "model.srz").chmod(0o644)
        with cell.start(["-c", code]) as process:
            process.popen.communicate(timeout=60)
        with pytest.raises(SubmissionError, match=r"model\.srz: something changed it"):
            cell.start(["train_gpt.py"])


@pytest.mark.usefixtures("no_walls")
def test_without_bubblewrap_nothing_runs_unless_it_is_allowed(tmp_path: Path) -> None:
    folder = submission(tmp_path / "submission")
    with pytest.raises(SubmissionError, match=r"there is none; to run it .* --allow-unsandboxed"):
        Cell(folder)
    with Cell(folder, allow_unsandboxed=True) as cell:
        assert cell.isolation == "UNSANDBOXED: there is none"
