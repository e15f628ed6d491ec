"""How a command is shut in on this machine: by bubblewrap, or by limits alone.

What is shown inside is the matter of `view`, who may come in that of `sandbox`.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from speedrun.errors import SpeedrunError
from speedrun.verify import view
from speedrun.verify.library import stand_in
from speedrun.verify.syscalls import filter_program
from speedrun.verify.watch import tasks_of_user

FIRST_INHERITED = 3
"""Number of the first descriptor that a process inherits."""

# Limits are set by a process of its own before it becomes the command: code between fork and exec
# of a judge that has threads could deadlock.
_LIMITER = """
import fcntl, os, resource, sys
settings, user, inherited = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
kept = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 64) for number in inherited if number]
for number, descriptor in enumerate(kept, 3):
    os.dup2(descriptor, number)
os.closerange(3 + len(kept), 65536)
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
os.execv(sys.argv[4], sys.argv[4:])
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
    for walls in (Walls.USER, Walls.NAMESPACE) if unused_user() else (Walls.NAMESPACE,):
        try:
            inside = room(walls, view.machine(stand_in()), scratch_bytes=1 << 20)
            user = unused_user() if walls is Walls.USER else 0
            settings = "RLIMIT_CORE=1"
            with start(walls, ["-c", ""], settings=settings, within=inside, user=user) as trial:
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


def unused_user() -> int:
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


def room(walls: Walls, visible: Sequence[str], *, scratch_bytes: int, cwd: str = "/") -> list[str]:
    """A bwrap command up to the program that it runs.

    Args:
        walls: Not `Walls.NONE`.
        visible: What is shown inside, from `view.machine`.
        scratch_bytes: Room in /tmp, and as much again in /dev/shm.
        cwd: Where the program starts.
    """
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
        command += ["--size", str(scratch_bytes)] if _knows("--size") else []
        command += ["--tmpfs", folder]
    command += [*visible, "--chdir", cwd, "--remount-ro", "/dev", "--remount-ro", "/"]
    while "--perms" in command and not _knows("--perms"):
        place = command.index("--perms")
        del command[place : place + 2]
    return command


def start(
    walls: Walls,
    arguments: Sequence[str],
    *,
    settings: str,
    within: Sequence[str] = (),
    user: int = 0,
    cwd: Path = Path("/"),
    scratch: str = "/tmp",
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Run `python ARGUMENTS` within walls, as the leader of a process group.

    Args:
        walls: Of which kind.
        arguments: Python runs isolated (-I), whatever they say.
        settings: Limits for the kernel, as NAME=value,NAME=value.
        within: The walls themselves, from `room`; nothing without them.
        user: Who it becomes inside; 0 stays who it is.
        cwd: Where it starts, without walls.
        scratch: Its own folder for temporary files.
        descriptors: What it inherits beside its standard streams, as FIRST_INHERITED and on: the
            same numbers for every process, or they would tell how many there were before.
    """
    python = [sys.executable, "-I", "-B", "-u"]
    inherited = ",".join(map(str, descriptors))
    inside = [*python, "-S", "-c", _LIMITER, settings, str(user), inherited, *python, *arguments]
    with _pipe_of(filter_program()) as filtering:
        if walls is Walls.NONE:
            command = [*python, "-S", "-c", _WARDEN, *inside]
        else:
            command = [
                *within,
                *(("--seccomp", str(filtering)) if filtering else ()),
                "--",
                *inside,
            ]
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
                # Threads that wait for each other spin; on a busy machine that takes ten times as
                # long as sleeping, and it takes the cores that the judge works on.
                "OMP_WAIT_POLICY": "passive",
            },
            pass_fds=descriptors,
            start_new_session=True,
        )


def other_tasks(walls: Walls) -> int:
    """Processes and threads that the kernel counts together with those inside."""
    # A user that nobody is has no others; since Linux 5.14, nor has a namespace of users.
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if walls is Walls.USER or (walls is Walls.NAMESPACE and version >= (5, 14)):
        return 0
    return tasks_of_user()


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
