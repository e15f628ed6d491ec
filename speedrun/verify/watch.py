"""Watches a judged process and all it starts, and ends them when they take more than they may.

The kernel's own limits hold for one process each, or not at all for root. What a family takes
together is only known to who adds it up.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 5.0
_NICENESS = -15
_MAX_ENTRIES, _MAX_DEPTH = 20_000, 16
_SPARE = 20
"""With less than a twentieth of the machine's memory left, whoever is judged has to go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What they may take together."""

    tasks: int
    memory_bytes: int
    cpu_s: float
    wall_s: float
    folders: tuple[Path, ...] = ()
    """Folders of this machine that they may write to."""
    folder_bytes: int = 0


def family(pid: int, *, most: int = 1 << 22) -> list[int]:
    """A process and its descendants as they are found, oldest first; no more than `most`."""
    found = [pid]
    for each in found:  # grows meanwhile
        if len(found) >= most:
            break
        found += _children(each)
    return found[:most]


def end_family(pid: int) -> None:
    """Kill a process and all its descendants.

    Its children go first: below bubblewrap that is the first process of a namespace, with which
    all others end at once. Where there is none, all are stopped before they are killed: a fork bomb
    has more children faster than one can count them.
    """
    for child in _children(pid):
        send(child, signal.SIGKILL)
    known: set[int] = set()
    for _ in range(100):
        fresh = set(family(pid)) - known
        if not fresh:
            break
        for each in fresh:
            send(each, signal.SIGSTOP)
        known |= fresh
    for each in known:
        send(each, signal.SIGKILL)


def tasks_of_user() -> int:
    """Processes and threads that the kernel counts for this user now."""
    tasks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                tasks += int((_stat(int(folder.name)) or ["0"] * 18)[17])
    return tasks


class Watch(threading.Thread):
    """Looks at a family ten times a second, and ends it when it takes too much."""

    def __init__(self, pid: int, allowance: Allowance) -> None:
        super().__init__(name=f"watch of {pid}", daemon=True)
        self.why = ""
        """What the family was ended for, if it was."""
        self.multiplied = False
        """Whether that was the number of its tasks, which is nobody's fault but its own."""
        self._pid, self._allowance, self._over = pid, allowance, threading.Event()
        self._began = time.monotonic()
        self._seen: dict[int, str] = {}

    def run(self) -> None:
        """Look until told to stop."""
        # Where many hundreds want the processors, who watches them has to come first. Root only;
        # for others the kernel divides time by sessions, and the family is a session of its own.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._over.wait(_EVERY_S):
            try:
                self.why = self._find_fault()
            except (OSError, ValueError, IndexError, MemoryError) as error:
                self.why = f"it could not be watched any more: {error}"
            if self.why:
                end_family(self._pid)
                return

    def stop(self) -> None:
        """Look no more, and wait for the end of all who were seen; the family is to be ended now.

        Outside a process namespace a process can leave its family; here it is found again.
        """
        self._over.set()
        self.join()
        deadline = time.monotonic() + _PATIENCE_S
        while self._alive() and time.monotonic() < deadline:
            for pid in self._alive():
                send(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _alive(self) -> dict[int, list[str]]:
        """Whoever was seen before and is still there: a number alone may mean somebody new."""
        stats = {pid: _stat(pid) for pid in self._seen}
        return {
            pid: fields
            for pid, fields in stats.items()
            if fields and fields[19] == self._seen[pid] and fields[0] not in "ZX"
        }

    def _find_fault(self) -> str:
        allowed = self._allowance
        members = family(self._pid, most=allowed.tasks + 1)
        stats = {pid: fields for pid in members if (fields := _stat(pid))}
        stats |= self._alive()
        self._seen = {pid: fields[19] for pid, fields in stats.items()}
        # Fields of /proc/PID/stat, counted from the state on, which is number 3 in proc(5).
        tasks = sum(int(fields[17]) for fields in stats.values())
        self.multiplied = tasks > allowed.tasks
        if self.multiplied:
            return f"it had {tasks:,} processes and threads, {allowed.tasks:,} are allowed"
        # Its own time in programs and in the kernel, and that of children that have ended.
        cpu_s = sum(sum(map(int, fields[11:15])) for fields in stats.values()) / _TICKS
        if cpu_s > allowed.cpu_s:
            return f"it used {cpu_s:.0f} s of processors, {allowed.cpu_s:g} are allowed"
        resident = sum(int(fields[21]) for fields in stats.values()) * _PAGE_BYTES
        if resident > allowed.memory_bytes:  # pages that they share were counted for each
            held = sum(map(_fair_share, stats))
            if held > allowed.memory_bytes:
                return f"it held {held:,} bytes of memory, {allowed.memory_bytes:,} are allowed"
        written = sum(map(_written, allowed.folders))
        if written > allowed.folder_bytes:
            return f"it wrote {written:,} bytes, {allowed.folder_bytes:,} are allowed"
        if time.monotonic() - self._began > allowed.wall_s:
            return f"it ran for more than {allowed.wall_s:g} s"
        total, available = _memory("MemTotal"), _memory("MemAvailable")
        if available * _SPARE < total:
            return f"the machine had only {available:,} of {total:,} bytes of memory left"
        return ""


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def _stat(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def _fair_share(pid: int) -> int:
    """Memory of a process, each shared page divided among those that share it."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.split("Pss:")[1].split()[0]) * 1024
    return 0


def _written(folder: Path) -> int:
    """Bytes that a folder takes on disk; without end where it would take too long to count."""
    written, entries, waiting = 0, 0, [(str(folder), 0)]
    while waiting:
        place, depth = waiting.pop()
        with suppress(OSError), os.scandir(place) as found:
            for entry in found:
                entries += 1
                if entries > _MAX_ENTRIES or depth > _MAX_DEPTH:
                    return 1 << 62
                written += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))
    return written


def _memory(key: str) -> int:
    """Bytes from /proc/meminfo; 0 where there is none."""
    with suppress(OSError, IndexError):
        return int(Path("/proc/meminfo").read_text().split(f"{key}:")[1].split()[0]) * 1024
    return 0


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
