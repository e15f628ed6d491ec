"""Where a submission's code runs: no network, no files but its own two, limits on everything.

With bubblewrap (Linux) the process sees Python and system libraries, read-only, and private copies
of the two counted files; data sets, home folders and an installed `speedrun` are not there.
Without it only the resource limits hold, and `Cell.isolation` says so.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from speedrun.errors import SubmissionError

COUNTED = ("train_gpt.py", "model.srz")
"""The files that a predictor consists of: what is counted is what runs."""

_SYSTEM = (
    *("/usr", "/bin", "/lib", "/lib32", "/lib64", "/sys", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
)
# Limits are set by a process of its own before it becomes the command: code between fork and exec
# of a judge that has threads could deadlock.
_LIMITER = """
import os, resource, sys
for setting in sys.argv[1].split(","):
    name, value = setting.split("=")
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    value = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
    resource.setrlimit(kind, (value, value))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _memory_bytes() -> int:
    """Three quarters of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


def _memory_folder() -> Path | None:
    """A folder in memory with a gigabyte free (containers often have 64 MB), if there is one."""
    folder = Path("/dev/shm")
    if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 1_000_000_000:
        return folder
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process of a submission may take."""

    memory_bytes: int = 0
    """Private writable memory; 0 allows three quarters of the machine's."""
    file_bytes: int = 4_000_000_000
    """Largest file it may write, the logits of one call included."""
    num_processes: int = 4_096
    """Processes and threads; on some kernels those of the whole user count."""
    num_files: int = 1_024
    """Open files."""

    def __str__(self) -> str:
        values = {
            "RLIMIT_DATA": self.memory_bytes or _memory_bytes(),
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NPROC": self.num_processes,
            "RLIMIT_NOFILE": self.num_files,
            "RLIMIT_CORE": 0,
        }
        return ",".join(f"{key}={value}" for key, value in values.items())


@functools.cache
def why_unsandboxed() -> str:
    """Empty where bubblewrap works; otherwise what is missing."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    trial = [*_isolation(), "--", sys.executable, "-I", "-S", "-c", ""]
    done = subprocess.run(trial, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        return ""
    return f"bubblewrap does not work here: {done.stderr.strip() or done.returncode}"


def _isolation() -> list[str]:
    """A bwrap command up to the part that differs between submissions."""
    command = [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
    ]
    for device in sorted(Path("/dev").glob("nvidia*")):
        command += ["--dev-bind", str(device), str(device)]
    interpreter = Path(sys.executable)
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), interpreter.resolve().parent.parent}
    prefixes |= {prefix.resolve() for prefix in prefixes}
    for path in [*map(Path, _SYSTEM), *sorted(prefixes)]:
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists() and path != Path("/"):
            command += ["--ro-bind", str(path), str(path)]
    # Code of an installed speedrun would not be counted, so it is not there to be used.
    package = Path(__file__).resolve().parents[1]
    if any(package.is_relative_to(prefix) for prefix in (*prefixes, Path("/usr"))):
        command += ["--tmpfs", str(package)]
    return command


class Cell:
    """A private folder with the counted files, and the means to start processes on them."""

    def __init__(self, submission: Path, *, limits: Limits | None = None) -> None:
        """Copy the counted files, so that what runs is what was checked, whatever is swapped later.

        Raises
            SubmissionError: a counted file cannot be read.
        """
        self._limits = limits or Limits()
        self._reason = why_unsandboxed()
        self._folder = Path(tempfile.mkdtemp(prefix="speedrun-judge-", dir=_memory_folder()))
        self.store = self._folder / "logits"
        """File on shared memory that takes the logits of one call."""
        self.store.touch()
        self.files = self._folder / "files"
        """Private copies of the counted files: what runs."""
        self.files.mkdir()
        for name in COUNTED:
            try:
                shutil.copyfile(submission / name, self.files / name)
            except OSError as error:
                self.close()
                raise SubmissionError(f"{submission / name}: cannot be read: {error}") from error

    @property
    def isolation(self) -> str:
        """One word or line for the verdict."""
        return f"UNSANDBOXED: {self._reason}" if self._reason else "bubblewrap"

    @property
    def store_inside(self) -> str:
        """`store` as the process in the cell sees it."""
        return str(self.store) if self._reason else "/logits"

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run `python ARGUMENTS` next to the counted files, in a process group of its own.

        Python runs isolated (-I): no variables, no user packages, no modules beside the script.
        """
        python = [sys.executable, "-I", "-B", "-u", *arguments]
        limiter = [sys.executable, "-I", "-S", "-c", _LIMITER, str(self._limits)]
        if self._reason:
            command, scratch = [*limiter, *python], str(self._folder)
        else:
            command, scratch = [*limiter, *self._bubblewrap(), "--", *python], "/tmp"
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=self.files,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "HOME": scratch,
                "TMPDIR": scratch,
                "USER": "judged",
                # Threads that wait for each other spin; on a busy machine that takes ten times as
                # long as sleeping, and it takes the cores that the judge works on.
                "OMP_WAIT_POLICY": "passive",
            },
            start_new_session=True,
        )

    def _bubblewrap(self) -> list[str]:
        return [
            *_isolation(),
            *("--ro-bind", str(self.files), "/judged", "--chdir", "/judged"),
            *("--bind", str(self.store), "/logits"),
        ]

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
