"""Files that are either whole or absent: a temporary name, fsync, rename.

Whatever stops the writer (a full disk, a signal, a power cut), a reader finds the old file or the
new one, never a part.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speedrun.errors import OutputError

_REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some of your quota or write elsewhere",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EISDIR: "a folder has this name; choose another",
    errno.ENOTDIR: "a file has the name of a folder on the way; choose another path",
    errno.EEXIST: "something has this name; remove it or choose another",
    errno.ENOTEMPTY: "a folder with content has this name; remove it or choose another",
}


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step; missing parent folders are made.

    Raises
        OutputError: the file cannot be written; what was at `path` before is untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; it takes the name `path` when the block ends.

    The block may make a file or a folder. A file replaces an older file; a folder never replaces a
    folder with content. After an error the temporary is removed and `path` is as it was.

    Raises
        OutputError: the file system refused to make, write, flush or rename it.
    """
    path = Path(path)
    # The leading dot and the suffix keep it out of every glob for finished files.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        # A failed write names no file; an error that names a file read in the block passes on.
        if error.filename is not None and not _is_ours(error.filename, temporary, path):
            raise
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "choose another path")
        raise OutputError(f"cannot write {path}: {reason}; {remedy}") from error
    finally:
        _remove(temporary)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content; OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_ours(name: object, temporary: Path, path: Path) -> bool:
    found = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else Path()
    return found == path or temporary in (found, *found.parents) or found in path.parents


def _flush(path: Path) -> None:
    """Fsync a file, or every file and folder below a folder."""
    if not path.is_dir():
        _flush_file(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _flush_file(Path(folder, name))
        _flush_folder(Path(folder))


def _flush_file(path: Path) -> None:
    # Some systems fsync only what was opened for writing.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    # Windows cannot open a folder; there a rename is as durable as it gets.
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
