"""A queue of submissions, judged unattended: each in a process of its own, some at a time.

    <out>/summary.md  summary.json
    <out>/<name>/result.json  verdict.json  reply.md  judge.log

A result is written last and in one step, so a submission has one or will be judged again: after a
crash, a power cut or a kill the same command goes on where it was. A submission that changed since
is judged anew. Nothing of a submission runs in this process; whatever becomes of the process that
judges it, the others go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedrun.errors import SubmissionError
from speedrun.files import write_atomic
from speedrun.pack.parts import part_folders
from speedrun.pack.submission import MANIFEST_NAME
from speedrun.verify.forensics.findings import clean
from speedrun.verify.reply import reply, summary
from speedrun.verify.verdict import Status

SCHEMA_VERSION = 1
RESULT_NAME = "result.json"
MAX_FILES = 10_000
"""Of one submission; one with more is not looked at."""
MOST_OUTPUT_BYTES = 64_000_000
"""Of a verdict."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
_LOG_BYTES = 4_000
_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one submission."""

    name: str
    status: Status
    fingerprint: str
    """Of its files and of what was asked; another one is judged again."""
    reason: str = ""
    """Why there is no verdict, if there is none."""
    verdicts: tuple[dict[str, Any], ...] = ()
    """One for each seed, as `verdict.json` has them."""
    together: dict[str, Any] | None = None
    """About all seeds, if there are several or a record was named."""
    seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION

    @property
    def val_bpb(self) -> float | None:
        """The mean over its seeds; None if one of them was not scored."""
        found = [verdict.get("measurement") for verdict in self.verdicts]
        scores = [each["bpb"] for each in found if isinstance(each, dict)]
        return sum(scores) / len(scores) if scores and len(scores) == len(found) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How a queue is judged."""

    out: Path
    options: tuple[str, ...] = ()
    """More words for `speedrun verify`."""
    jobs: int = 1
    limit_s: float = 7200.0
    """For one submission."""


def list_queue(queue: Path) -> list[Path]:
    """Submissions in a folder, by name: the folder itself if it is one, else what is in it.

    Every folder or link in a queue is an entry, also what is no submission: it gets a verdict that
    says so.

    Raises
        SubmissionError: nothing is there.
    """
    if not queue.is_dir():
        raise SubmissionError(f"{queue} is not a folder; expected a submission or a queue of them")
    if (queue / "submission.json").exists() or (queue / MANIFEST_NAME).exists():
        return [queue.resolve()]
    if part_folders(queue):
        return [queue.resolve()]
    return sorted(
        path
        for path in queue.resolve().iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.is_symlink())
    )


def judge_queue(
    submissions: Sequence[Path], order: Order, told: Callable[[Result, bool], None]
) -> list[Result]:
    """Judge all that have no result yet; returns everybody's, in the order given.

    `told` is called for each, with whether it was judged just now.

    Raises
        OutputError: a result cannot be written.
    """
    found: dict[Path, Result] = {}
    with ThreadPoolExecutor(max_workers=order.jobs) as workers:
        waiting = {}
        for path in submissions:
            if (known := _known(path, order)) is not None:
                found[path] = known
                told(known, False)
            else:
                waiting[workers.submit(_judge, path, order)] = path
        try:
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                told(found[waiting[done]], True)
                _write_summary(order.out, [found[path] for path in submissions if path in found])
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    results = [found[path] for path in submissions]
    _write_summary(order.out, results)
    return results


def read_result(folder: Path) -> Result | None:
    """The result in a folder of `out`; None if there is none that can be read."""
    try:
        values = json.loads((folder / RESULT_NAME).read_bytes())
        values["status"] = Status(values["status"])
        values["verdicts"] = tuple(values["verdicts"])
        result = Result(**values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return result if result.schema_version == SCHEMA_VERSION else None


def place_of(submission: Path, out: Path) -> Path:
    """Where results of a submission go: its own name if that is plain, else a hash of it."""
    name = submission.name
    if not _NAME.fullmatch(name):
        name = f"unnamed-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return out / name


def _known(submission: Path, order: Order) -> Result | None:
    result = read_result(place_of(submission, order.out))
    fits = result is not None and result.fingerprint == _fingerprint(submission, order)
    return result if fits else None


def _fingerprint(submission: Path, order: Order) -> str:
    """Of names, sizes and times of all files, and of what is asked. Nothing is read."""
    digest = hashlib.sha256(json.dumps(order.options).encode())
    for number, path in enumerate(_walk(submission)):
        if number > MAX_FILES:
            break
        with suppress(OSError):
            status = path.lstat()
            facts = (status.st_mode, status.st_size, status.st_mtime_ns)
            digest.update(os.fsencode(path.relative_to(submission.parent)) + repr(facts).encode())
    return digest.hexdigest()


def _walk(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            for inner in sorted(path.iterdir()):
                yield from _walk(inner)


def _judge(submission: Path, order: Order) -> Result:
    """One submission, in a process of its own; its result is on disk when this returns."""
    began = time.monotonic()
    place = place_of(submission, order.out)
    fingerprint = _fingerprint(submission, order)
    status, reason, log = Status.UNDECIDED, "", ""
    verdicts: list[dict[str, Any]] = []
    together: dict[str, Any] | None = None
    if obstacle := _obstacle(submission):
        status, reason = Status.FAIL, obstacle
    else:
        # A name of its own, so that what a killed queue left is written over by the next one.
        written = place.with_name(f".{place.name}.judging")
        written.parent.mkdir(parents=True, exist_ok=True)
        written.unlink(missing_ok=True)
        code, log = _run_judge(submission, written, order)
        try:
            verdicts, together, status = _read_verdicts(written)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            last = (log.strip().splitlines() or [f"{error}"])[-1]
            reason = (
                f"not judged within {order.limit_s:g} s"
                if code is None
                else f"the judge ended with code {code}: {clean(last, 300)}"
            )
        written.unlink(missing_ok=True)
    result = Result(
        name=clean(submission.name),
        status=status,
        fingerprint=fingerprint,
        reason=reason,
        verdicts=tuple(verdicts),
        together=together,
        seconds=round(time.monotonic() - began, 3),
    )
    _write(place, result, log)
    return result


def _obstacle(submission: Path) -> str:
    """Why something in a queue is no submission, or nothing."""
    if submission.is_symlink():
        return "it is a link; hand in the folder itself"
    if not submission.is_dir():
        return "it is no folder; hand in a submission folder"
    if sum(1 for _, _ in zip(range(MAX_FILES + 2), _walk(submission), strict=False)) > MAX_FILES:
        return f"it holds more than {MAX_FILES:,} files"
    if not (submission / "submission.json").is_file():
        return "it has no submission.json; `speedrun submit` writes one"
    return ""


def _run_judge(submission: Path, out: Path, order: Order) -> tuple[int | None, str]:
    """Exit code and the end of what was said; None when time was up."""
    command = [sys.executable, "-m", "speedrun", "verify", os.fspath(submission)]
    command += ["--json", "--out", os.fspath(out), *order.options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        try:
            code: int | None = process.wait(order.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = log.seek(0, os.SEEK_END)
        log.seek(max(size - _LOG_BYTES, 0))
        return code, log.read().decode("utf-8", "replace")


def _die_with_parent() -> Callable[[], None] | None:
    """For a child on Linux: a killed queue leaves no judge behind that works for nobody."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


def _read_verdicts(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any] | None, Status]:
    if path.stat().st_size > MOST_OUTPUT_BYTES:
        raise ValueError(f"the verdict is larger than {MOST_OUTPUT_BYTES:,} bytes")
    values = json.loads(path.read_bytes())
    if isinstance(values, dict):
        return [values], None, Status(values["status"])
    return values[:-1], values[-1], Status(values[-1]["status"])


def _write(place: Path, result: Result, log: str) -> None:
    values = dataclasses.asdict(result)
    verdicts: Any = [*result.verdicts, *([result.together] if result.together else [])]
    if not verdicts:
        verdicts = [{"status": result.status, "reason": result.reason}]
    shown = verdicts[0] if len(verdicts) == 1 else verdicts
    write_atomic(place / "verdict.json", _json(shown))
    write_atomic(place / "reply.md", reply(result).encode())
    if log.strip():
        write_atomic(place / "judge.log", log.encode())
    write_atomic(place / RESULT_NAME, _json(values))


def _write_summary(out: Path, results: Sequence[Result]) -> None:
    rows = [
        {
            "name": result.name,
            "status": result.status,
            "val_bpb": result.val_bpb,
            "reason": result.reason,
            "seconds": result.seconds,
        }
        for result in results
    ]
    write_atomic(out / "summary.json", _json(rows))
    write_atomic(out / "summary.md", summary(results).encode())


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
