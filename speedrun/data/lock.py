"""A file that one process holds: the others wait, and a dead holder lets go by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from speedrun.errors import OutputError


@contextmanager
def hold(path: Path, echo: Callable[[str], object], *, remedy: str) -> Iterator[None]:
    """Hold a file's lock; the system gives it back when the process dies.

    Raises
        OutputError: the file cannot be made; `remedy` says what to do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"cannot write {path.parent}: {error.strerror}; {remedy}") from error
    with file:
        try:
            _take(file, wait=False)
        except OSError:
            echo(f"waiting for another process that holds {path}")
            _take(file, wait=True)
        yield


def _take(file: BinaryIO, *, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        _take_on_windows(file, wait=wait)
    else:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _take_on_windows(file: BinaryIO, *, wait: bool) -> None:
    import msvcrt

    locking, modes = vars(msvcrt)["locking"], vars(msvcrt)
    while True:
        file.seek(0)
        try:
            locking(file.fileno(), modes["LK_LOCK" if wait else "LK_NBLCK"], 1)
        except OSError:
            if not wait:
                raise
        else:
            return  # with LK_LOCK, Windows tries for ten seconds only, so ask again
