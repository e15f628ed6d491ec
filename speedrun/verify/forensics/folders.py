"""Finds records below a path and reads their files: plain files only, of bounded size and number.

A folder with a `submission*.json` is a record, with every log below it. Logs outside of any record
are records without a claim. Links are not followed; what is not read is said.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speedrun.errors import FormatError, SubmissionError
from speedrun.verify.forensics.claims import Claims, read_claims
from speedrun.verify.forensics.dialects import MAX_LINES, MAX_SCORES, read_log
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log

MAX_LOG_BYTES = 8_000_000
MAX_RECORD_BYTES = 32_000_000
"""Of all logs of one record."""
MAX_CLAIM_BYTES = 1_000_000
MAX_LOGS = 100
"""Of one record."""
MAX_ENTRIES = 100_000
"""Files and folders of one walk."""
MAX_DEPTH = 8
_LOG_SUFFIXES = (".log", ".txt", ".out")
_MODEL_SUFFIXES = (".ptz", ".srz", ".xz", ".zst", ".br", ".lzma", ".pgrp", ".zz")


@dataclass(kw_only=True)
class Record:
    """What lies in one record's folder."""

    folder: Path
    name: str
    """As it is shown: the path below the one that was asked for."""
    claims: list[Claims] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes on disk of the code and of packed weights, if they are in the folder."""
    findings: list[Finding] = field(default_factory=list)
    """What went wrong while reading."""
    num_bytes: int = 0
    """Read from its logs."""
    is_single_log: bool = False
    """One log file was asked for, so that nothing is missing around it."""

    def trouble(self, id: str, file: str, found: str, expected: str, sentence: str) -> None:
        """Note something that could not be read."""
        self.findings.append(
            Finding(
                id=id,
                severity=Severity.UNDECIDED,
                file=file,
                line=0,
                found=found,
                expected=expected,
                sentence=sentence,
            )
        )


class Walk:
    """One walk over a tree, with its limits; a record is read when it is asked for."""

    def __init__(self, top: Path) -> None:
        """Look at a folder, or at one log.

        Raises
            SubmissionError: nothing is there.
        """
        if not (top.is_file() or top.is_dir()):
            raise SubmissionError(f"{top} is no folder and no plain file; expected a record or log")
        self.top = top
        self.notes: list[str] = []
        """What was left out, and why."""
        self._seen = 0

    def records(self) -> Iterator[Record]:
        """Every record at or below the path that holds anything to report."""
        if self.top.is_file():
            record = Record(folder=self.top.parent, name=self.top.name, is_single_log=True)
            _read_into(record, self.top)
            yield record
        else:
            yield from self._below(self.top, None, 0)

    def _below(self, folder: Path, outer: Record | None, depth: int) -> Iterator[Record]:
        files, folders = self._list(folder)
        record = outer
        is_record = any(_is_claim(file.name) for file in files)
        if is_record or (outer is None and any(_is_log(file.name) for file in files)):
            name = folder.relative_to(self.top).as_posix()
            record = Record(folder=folder, name=folder.resolve().name if name == "." else name)
        if record is not None:
            for file in files:
                _read_into(record, file)
        if depth < MAX_DEPTH:
            for below in folders:
                # A loose log does not make everything below it one record.
                inner = record if record is not None and (record is outer or is_record) else None
                yield from self._below(below, inner, depth + 1)
        elif folders:
            self.notes.append(f"{folder}: folders below a depth of {MAX_DEPTH} were not read")
        if record is None or record is outer:
            return
        if record.claims or record.logs or record.findings:
            yield record

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Files and folders in a folder; links to folders, hidden ones and caches are left out."""
        files, folders = [], []
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.notes.append(f"{folder}: cannot be listed: {error.strerror}")
            return [], []
        for entry in entries:
            self._seen += 1
            if self._seen > MAX_ENTRIES:
                if not any(str(MAX_ENTRIES) in note for note in self.notes):
                    self.notes.append(f"{self.top}: more than {MAX_ENTRIES} entries; rest not read")
                break
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_dir():
                self.notes.append(f"{entry.path}: a link to a folder was not followed")
            else:
                files.append(Path(entry.path))
        return files, folders


def _is_claim(name: str) -> bool:
    return name.startswith("submission") and name.endswith(".json")


def _is_log(name: str) -> bool:
    return name.endswith(_LOG_SUFFIXES)


def _is_model(name: str) -> bool:
    return name.endswith(_MODEL_SUFFIXES)


def _read_into(record: Record, path: Path) -> None:
    """Take from a file what forensics can use; other files are passed over."""
    name = path.relative_to(record.folder).as_posix()
    if _is_claim(path.name) or (record.is_single_log and name.endswith(".json")):
        if (content := _read(record, path, name, MAX_CLAIM_BYTES)) is not None:
            try:
                record.claims.append(read_claims(_decode(content), name))
            except FormatError as error:
                record.trouble(
                    "unreadable", name, str(error), "a JSON object", "its claims were not checked"
                )
    elif _is_log(path.name) or record.is_single_log:
        _read_log_into(record, path, name)
    elif path.name == "train_gpt.py" or _is_model(path.name):
        try:
            status = path.lstat()
        except OSError:
            return
        if stat.S_ISREG(status.st_mode):
            record.sizes[name] = status.st_size


def _read_log_into(record: Record, path: Path, name: str) -> None:
    if len(record.logs) >= MAX_LOGS or record.num_bytes > MAX_RECORD_BYTES:
        if not any(finding.id == "too-many" for finding in record.findings):
            limit = f"at most {MAX_LOGS} of {MAX_RECORD_BYTES:,} bytes"
            record.trouble("too-many", name, "more logs", limit, "the rest was not read")
        return
    content = _read(record, path, name, MAX_LOG_BYTES)
    if content is None:
        return
    record.num_bytes += len(content)
    is_sure = name.endswith(".log") or record.is_single_log
    text = _decode(content)
    if "\0" in text[:65_536]:
        if is_sure:
            record.trouble("unreadable", name, "binary data", "text", "it was not read")
        return
    log = read_log(text, name, hashlib.sha256(content).hexdigest())
    if log.is_cut:
        found = f"more than {MAX_LINES:,} lines or {MAX_SCORES} scores"
        record.trouble("too-large", name, found, "fewer", "what comes after them was not read")
    if not log.is_empty:
        record.logs.append(log)
    elif is_sure:
        found = f"{len(content):,} bytes, no line of a known dialect"
        record.trouble("unreadable", name, found, "steps and scores", "nothing in it was checked")


def _read(record: Record, path: Path, name: str, limit: int) -> bytes | None:
    """A plain file's content, at most `limit` bytes; otherwise a note and None."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.is_symlink() and not record.is_single_log:
            record.trouble("not-a-file", name, "a link", "a plain file", "it was not followed")
            return None
        handle = os.open(path.resolve() if record.is_single_log else path, flags)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "cannot be opened"
        record.trouble("unreadable", name, reason, "a readable file", "it was not read")
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            record.trouble("not-a-file", name, "no plain file", "a plain file", "it was not read")
            return None
        content = file.read(limit + 1) if status.st_size <= limit else b""
        if status.st_size > limit or len(content) > limit:
            found, most = f"{status.st_size:,} bytes", f"at most {limit:,}"
            record.trouble("too-large", name, found, most, "it was not read")
            return None
    return content


def _decode(content: bytes) -> str:
    """UTF-8, or UTF-16 where it says so; what is neither becomes replacement characters."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")
