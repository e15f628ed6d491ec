"""Where a submission's code runs: no network, no files but its own two, limits on everything.

With bubblewrap (Linux) a process sees its counted files and what `view` shows, all read-only, and a
scratch folder in memory that nobody else sees. It is alone: every process that a cell starts has
its own namespaces, scratch and store, so that nothing reaches the next one. A filter bars it from
system calls (`syscalls`), the kernel limits each process, and `watch` limits them together. When
it is ended, all that it started end with it.

Without bubblewrap only the limits hold; that has to be allowed, and `Cell.isolation` says it.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from speedrun.errors import SpeedrunError, SubmissionError
from speedrun.files import sha256_file
from speedrun.verify import view
from speedrun.verify.library import stand_in, twins
from speedrun.verify.store import Store
from speedrun.verify.syscalls import filter_program
from speedrun.verify.watch import Allowance, Watch, end_family, tasks_of_user

COUNTED = ("train_gpt.py", "model.srz")
"""The files that a predictor consists of: what is counted is what runs."""
_MAX_COUNTED_BYTES = 1 << 30
_OWN_TASKS = 4
"""Of bubblewrap or the warden, beside the predictor's own."""
_RESERVE_TASKS = 64
"""So many more the kernel allows: it would only refuse, while the watch ends who asks for more."""

# Limits are set by a process of its own before it becomes the command: code between fork and exec
# of a judge that has threads could deadlock.
_LIMITER = """
import os, resource, sys
settings, user = sys.argv[1], int(sys.argv[2])
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
except OSError:
    pass
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
for setting in settings.split(","):
    name, value = setting.split("=")
    kind = getattr(resource, name, None)
    if kind is not None:
        hard = resource.getrlimit(kind)[1]
        value = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(kind, (value, value))
os.execv(sys.argv[3], sys.argv[3:])
"""
# In bubblewrap's place, where there is none: root gives the command a process namespace, which ends
# whole. Others are left with a subreaper: children that lose their parent come to it to be ended.
_WARDEN = """
import ctypes, os, signal, sys
def reap(child):
    ended, status = 0, 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
def end():
    while linux:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = file.read().split()
        if not children:
            break
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
linux = sys.platform == "linux"
if linux:
    libc = ctypes.CDLL(None)
    PDEATHSIG, SUBREAPER, NEWPID = 1, 36, 0x20000000
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: (end(), os._exit(143)))
    libc.prctl(PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    libc.unshare(NEWPID)
first = os.fork()
if not first:
    if linux:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    second = os.fork()
    if not second:
        os.execv(sys.argv[1], sys.argv[1:])
for number in (0, 1, 2):
    os.close(number)
code = reap(first or second)
if first:
    end()
os._exit(code)
"""


def memory_bytes() -> int:
    """Three quarters of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process of a submission, with all that it starts, may take."""

    memory_bytes: int = 0
    """Private writable memory of each, and memory of all; 0 allows three quarters of the machine's.
    Address space itself is not limited: a GPU's driver reserves terabytes of it."""
    file_bytes: int = 4_000_000_000
    """Largest file, the logits of one call included."""
    scratch_bytes: int = 2_000_000_000
    """All files in /tmp, and as much again in /dev/shm."""
    num_processes: int = 0
    """Processes and threads of all; 0 allows 512 and 16 for each core."""
    num_files: int = 1_024
    """Open files of each."""
    cpu_s: float = float("inf")
    """Processor time of all. Threads add up: allow the time budget times the cores."""
    wall_s: float = float("inf")
    """Time from the start, waiting included. `RemotePredictor` keeps the track's budget."""
    devices: tuple[str, ...] = ()
    """Device files that are shown, such as /dev/nvidia0; see `gpu_devices`."""

    @property
    def allowance(self) -> Allowance:
        """For all together."""
        return Allowance(
            tasks=(self.num_processes or 512 + 16 * (os.cpu_count() or 1)) + _OWN_TASKS,
            memory_bytes=self.memory_bytes or memory_bytes(),
            cpu_s=self.cpu_s,
            wall_s=self.wall_s,
        )

    def settings(self, *, other_tasks: int) -> str:
        """For the kernel, which applies them to each process.

        `other_tasks` are processes and threads that the kernel counts with the cell's own.
        """
        allowance = self.allowance
        values = {
            "RLIMIT_DATA": allowance.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NPROC": allowance.tasks + _RESERVE_TASKS + other_tasks,
            "RLIMIT_NOFILE": self.num_files,
            "RLIMIT_MSGQUEUE": 0,
            # Of 0, a crash would still be piped to the machine's crash handler; of 1 it is not.
            "RLIMIT_CORE": 1,
        }
        if self.cpu_s != float("inf"):
            values["RLIMIT_CPU"] = int(self.cpu_s) + 1
        return ",".join(f"{key}={value}" for key, value in values.items())


def gpu_devices() -> tuple[str, ...]:
    """What a process needs to use the NVIDIA GPUs of this machine, for `Limits.devices`."""
    return tuple(str(device) for device in sorted(Path("/dev").glob("nvidia*")))


class Walls(StrEnum):
    """What holds a process in."""

    USER = "bubblewrap started by root; inside, the process becomes a user that nobody is"
    NAMESPACE = "bubblewrap with a namespace of users"
    NONE = "limits only"


@functools.cache
def best_walls() -> tuple[Walls, str]:
    """The best that works here, and why there are none."""
    if shutil.which("bwrap") is None:
        return Walls.NONE, "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    # The kernel does not count root's processes, and its settings are root's to write: as root,
    # the process becomes somebody else. Where root lacks the right to, a namespace has to do.
    reason = ""
    for walls in (Walls.USER, Walls.NAMESPACE) if _unused_user() else (Walls.NAMESPACE,):
        try:
            room = _room(walls, Limits(), stand_in())
            with _start(walls, Limits(), ["-S", "-c", ""], room=room) as trial:
                _, said = trial.communicate()
        except (OSError, SpeedrunError) as error:
            reason = reason or str(error)
            continue
        if trial.returncode == 0:
            return walls, ""
        reason = reason or said.decode(errors="replace").strip() or f"exit {trial.returncode}"
    return Walls.NONE, f"bubblewrap does not work here: {reason.splitlines()[-1]}"


def why_unsandboxed() -> str:
    """Empty where bubblewrap works; otherwise what is missing."""
    return best_walls()[1]


class Process:
    """A process in a cell, with its own store. The `with` block ends it and all that it started."""

    def __init__(
        self, popen: subprocess.Popen[bytes], store: Store, limits: Limits, folder: Path | None
    ) -> None:
        self.popen = popen
        self.store = store
        """Takes the logits of one call."""
        self._folder = folder
        self._watch = Watch(popen.pid, limits.allowance)
        self._watch.start()

    @property
    def ended_for(self) -> str:
        """Which limit it broke, if it was ended for that."""
        return self._watch.why

    def end(self) -> None:
        """Kill it and all that it started, wait until they are gone, and remove its traces."""
        if self.popen.poll() is None:
            end_family(self.popen.pid)
            self.popen.wait()
        self._watch.stop()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()
        self.store.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class Cell:
    """A private copy of the counted files, and the means to start processes on it."""

    def __init__(
        self,
        submission: Path,
        *,
        limits: Limits | None = None,
        hidden_documents: Sequence[str] = (),
        allow_unsandboxed: bool = False,
    ) -> None:
        """Copy the counted files, so that what runs is what was checked, whatever is swapped later.

        Args:
            submission: Folder with the counted files.
            limits: What each process may take, with all that it starts.
            hidden_documents: Ids of the validation documents, where these are Python's library.
            allow_unsandboxed: Go on where bubblewrap does not work.

        Raises
            SubmissionError: a counted file cannot be read, or there is no bubblewrap.
            DataError: this Python ships no source of its library to make a stand-in from.
            OutputError: the cache of stand-ins cannot be written.
        """
        self.limits = limits or Limits()
        self._walls, self._reason = best_walls()
        if self._reason and not allow_unsandboxed:
            raise SubmissionError(
                f"a submission's code runs in a sandbox only, and {self._reason}; to run it with "
                "limits but without walls, pass --allow-unsandboxed"
            )
        self._library, self._blanked = Path(), list[Path]()
        if not self._reason:
            self._library = stand_in(hidden_documents)
            self._blanked = twins(hidden_documents)
        self._folder = Path(tempfile.mkdtemp(prefix="speedrun-judge-"))
        self.files = self._folder / "files"
        """The private copies: what really runs."""
        try:
            self._sums = _copy_counted(submission, self.files)
        except BaseException:
            self.close()
            raise

    @property
    def isolation(self) -> str:
        """One word or line for the verdict."""
        return f"UNSANDBOXED: {self._reason}" if self._reason else "bubblewrap"

    def start(self, arguments: Sequence[str], *, descriptors: Sequence[int] = ()) -> Process:
        """Run `python ARGUMENTS` beside the counted files. Who starts a process has to end it.

        Python runs isolated (-I): no variables, no user's packages, no modules beside the script.
        The process inherits its store and `descriptors`, and finds an empty scratch folder.

        Raises
            SubmissionError: the private copies were changed.
        """
        for name, expected in self._sums.items():
            if sha256_file(self.files / name) != expected:
                raise SubmissionError(f"{name}: something changed it while it was judged")
        store = Store()
        room, folder, cwd, scratch = [], None, Path("/"), "/tmp"
        try:
            if self._walls is Walls.NONE:
                folder = Path(tempfile.mkdtemp(dir=self._folder))
                cwd, scratch = folder / "judged", str(_make_folder(folder / "tmp"))
                _copy_counted(self.files, cwd)
            else:
                room = _room(self._walls, self.limits, self._library, self._blanked, self.files)
            popen = _start(
                self._walls,
                self.limits,
                arguments,
                room=room,
                cwd=cwd,
                scratch=scratch,
                descriptors=[store.descriptor, *descriptors],
            )
        except BaseException:
            store.close()
            raise
        return Process(popen, store, self.limits, folder)

    def close(self) -> None:
        """Remove the folder. Processes are ended by who started them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _copy_counted(source: Path, target: Path) -> dict[str, str]:
    """Copy the counted files, and give their hashes.

    Raises
        SubmissionError: one is missing, or no plain file.
    """
    _make_folder(target)
    for name in COUNTED:
        try:
            # Between the check and now, a link may have taken the file's place.
            reading = os.open(source / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(reading, "rb") as file, (target / name).open("xb") as copy:
                if not stat.S_ISREG(os.fstat(reading).st_mode):
                    raise SubmissionError(f"{source / name} is not a plain file")
                shutil.copyfileobj(file, copy)
        except OSError as error:
            raise SubmissionError(f"{source / name}: cannot be read: {error}") from error
        (target / name).chmod(0o444)  # inside, the reader may be another user
    return {name: sha256_file(target / name) for name in COUNTED}


def _make_folder(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o755)
    return path


def _unused_user() -> int:
    """As root, a number that no user has; 0 for others, and where numbers are few."""
    try:
        first, _, count = map(int, Path("/proc/self/uid_map").read_text().split()[:3])
    except (OSError, ValueError):
        return 0
    if os.geteuid() or first or count < 1 << 31 or not filter_program():
        return 0
    return (1 << 30) + secrets.randbelow(1 << 29)


@functools.cache
def _knows(option: str) -> bool:
    """Whether this bubblewrap has an option; old ones lack some that make its walls thicker."""
    done = subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False)
    return f" {option} " in done.stdout + done.stderr


def _room(
    walls: Walls,
    limits: Limits,
    library: Path,
    blanked: Sequence[Path] = (),
    files: Path | None = None,
) -> list[str]:
    """A bwrap command up to the program that it runs."""
    command = ["bwrap", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if walls is Walls.USER:
        command += [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup-try")]
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000"]
        command += ["--disable-userns"] if _knows("--disable-userns") else []
    command += ["--hostname", "judged", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--perms", "1777"]
        command += ["--size", str(limits.scratch_bytes)] if _knows("--size") else []
        command += ["--tmpfs", folder]
    command += view.machine(library, devices=limits.devices, blanked=blanked)
    if files is not None:
        command += ["--ro-bind", str(files), "/judged", "--chdir", "/judged"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    while "--perms" in command and not _knows("--perms"):
        place = command.index("--perms")
        del command[place : place + 2]
    return command


def _start(
    walls: Walls,
    limits: Limits,
    arguments: Sequence[str],
    *,
    room: Sequence[str] = (),
    cwd: Path = Path("/"),
    scratch: str = "/tmp",
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Run `python ARGUMENTS` within walls."""
    python = [sys.executable, "-I", "-B", "-u"]
    user = _unused_user() if walls is Walls.USER else 0
    # A user that nobody is has no other processes; since Linux 5.14, nor has a namespace of users.
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    alone = walls is Walls.USER or (walls is Walls.NAMESPACE and version >= (5, 14))
    settings = limits.settings(other_tasks=0 if alone else tasks_of_user())
    inside = [*python, "-S", "-c", _LIMITER, settings, str(user), *python, *arguments]
    with _pipe_of(filter_program()) as filtering:
        if walls is Walls.NONE:
            command = [*python, "-S", "-c", _WARDEN, *inside]
        else:
            command = [*room, *(("--seccomp", str(filtering)) if filtering else ()), "--", *inside]
            descriptors = [*descriptors, *((filtering,) if filtering else ())]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "HOME": scratch,
                "TMPDIR": scratch,
                "USER": "judged",
            },
            pass_fds=descriptors,
            start_new_session=True,
        )


@contextmanager
def _pipe_of(data: bytes) -> Iterator[int]:
    """A descriptor from which a child can read a little data; 0 if there is none."""
    if not data:
        yield 0
        return
    reading, writing = os.pipe()
    try:
        os.write(writing, data)  # a kilobyte: it fits into the pipe
        os.close(writing)
        yield reading
    finally:
        os.close(reading)
