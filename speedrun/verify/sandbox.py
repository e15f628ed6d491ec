"""Where a submission's code runs: no network, no files but its own two, limits on everything.

With bubblewrap (Linux) a process sees its counted files and what `view` shows, all read-only, and a
scratch folder in memory that nobody else sees. It is alone: every process that a cell starts has
its own namespaces, scratch and store, so that nothing reaches the next one. A filter bars it from
system calls (`syscalls`), the kernel limits each process, and `watch` limits them together. When
it is ended, all that it started end with it.

Without bubblewrap only the limits hold; that has to be allowed, and `Cell.isolation` says it.
How the walls are put up is the matter of `walls`.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from speedrun.errors import SubmissionError
from speedrun.files import sha256_file
from speedrun.verify import view
from speedrun.verify.library import stand_in, twins
from speedrun.verify.store import Store
from speedrun.verify.walls import Walls, best_walls, other_tasks, room, start, unused_user
from speedrun.verify.watch import Allowance, Watch, end_family

COUNTED = ("train_gpt.py", "model.srz")
"""The files that a predictor consists of: what is counted is what runs."""
_OWN_TASKS = 4
"""Of bubblewrap or the warden, beside the predictor's own."""
_RESERVE_TASKS = 64
"""So many more the kernel allows: it would only refuse, while the watch ends who asks for more."""


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
    folder_bytes: int = 4_000_000_000
    """All files in folders that are lent to be written to."""
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


class Process:
    """A process in a cell, with its own store. The `with` block ends it and all that it started."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        store: Store,
        allowance: Allowance,
        folder: Path,
    ) -> None:
        self.popen = popen
        self.store = store
        """Takes the logits of one call."""
        self._folder = folder
        self._watch = Watch(popen.pid, allowance)
        self._watch.start()

    @property
    def ended_for(self) -> str:
        """Which limit it broke, if it was ended for that."""
        return self._watch.why

    @property
    def multiplied(self) -> bool:
        """Whether it was ended for starting too many processes."""
        return self._watch.multiplied

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
        _remove(self._folder)

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

    def inside(self, name: str) -> str:
        """Path of what `start` lends under a name, as the process sees it."""
        return str(self._folder / name) if self._walls is Walls.NONE else f"/{name}"

    def start(
        self,
        arguments: Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        readable: Mapping[str, Path] | None = None,
        writable: Mapping[str, Path] | None = None,
    ) -> Process:
        """Run `python ARGUMENTS` beside the counted files. Who starts a process has to end it.

        Python runs isolated (-I): no variables, no user's packages, no modules beside the script.
        The process finds an empty scratch folder.

        Args:
            arguments: The script and its own arguments.
            descriptors: What it inherits, beside its store.
            readable: Files and folders to lend, by the name for `inside`. The process may be
                another user, who needs the right to read them.
            writable: Folders to lend that it may write to, likewise.

        Raises
            SubmissionError: the private copies were changed.
        """
        for name, expected in self._sums.items():
            if sha256_file(self.files / name) != expected:
                raise SubmissionError(f"{name}: something changed it while it was judged")
        readable, writable = readable or {}, writable or {}
        allowance = replace(
            self.limits.allowance,
            folders=tuple(writable.values()),
            folder_bytes=self.limits.folder_bytes,
        )
        # Its own copies also in the times that they show: how old they are would tell how long ago
        # another process was started on them.
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        files, scratch, within = folder / "judged", "/tmp", list[str]()
        store = Store()
        try:
            _copy_counted(self.files, files)
            if self._walls is Walls.NONE:
                scratch = str(_make_folder(folder / "tmp"))
                for name, path in {**readable, **writable}.items():
                    link = self._folder / name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.unlink(missing_ok=True)
                    link.symlink_to(path.resolve())
            else:
                visible = view.machine(
                    self._library,
                    devices=self.limits.devices,
                    blanked=self._blanked,
                    readable={"/judged": files}
                    | {self.inside(name): path for name, path in readable.items()},
                    writable={self.inside(name): path for name, path in writable.items()},
                )
                scratch_bytes = self.limits.scratch_bytes
                within = room(self._walls, visible, scratch_bytes=scratch_bytes, cwd="/judged")
            popen = start(
                self._walls,
                arguments,
                settings=self.limits.settings(other_tasks=other_tasks(self._walls)),
                within=within,
                user=unused_user() if self._walls is Walls.USER else 0,
                cwd=files,
                scratch=scratch,
                descriptors=[store.descriptor, *descriptors],
            )
        except BaseException:
            store.close()
            _remove(folder)
            raise
        return Process(popen, store, allowance, folder)

    def close(self) -> None:
        """Remove the folder. Processes are ended by who started them."""
        _remove(self._folder)

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


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # folders within folders, a thousand deep
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False)


def _make_folder(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o755)
    return path
