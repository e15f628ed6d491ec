"""Waiting for a process by the judge's own clock, and noting when it printed what."""

from __future__ import annotations

import os
import selectors
import time
from contextlib import suppress
from pathlib import Path

from speedrun.verify.sandbox import Process
from speedrun.verify.trainlog import parse_line

_KEPT = 4_000
_LINE = 1_000
_POLL_S = 0.2


class Listener:
    """Reads what a process prints until it ends, or writes too much and has to be ended."""

    def __init__(self, process: Process, out: Path, *, limit_bytes: int) -> None:
        """Take over a process just started: seconds count from now.

        Args:
            process: Its own limits end it when its time is up.
            out: Folder that it may write to.
            limit_bytes: Bytes in `out` at which it is ended.
        """
        self.wall_s = 0.0
        """Seconds from the start to the end, by the judge's clock."""
        self.problem = ""
        """Why it did not end well, with its last words; empty if it did."""
        self.marks: list[tuple[float, float]] = []
        """(seconds of the judge, seconds of the log) of the first timed line and of the last."""
        self._process, self._out, self._limit_bytes = process, out, limit_bytes
        self._began, self._looked_s = time.monotonic(), 0.0
        self._stderr, self._line = b"", b""

    def to_the_end(self) -> None:
        """Listen until the process has ended; what it started is left for `Process.end`."""
        popen = self._process.popen
        assert popen.stdin is not None and popen.stdout is not None and popen.stderr is not None
        popen.stdin.close()
        with selectors.DefaultSelector() as selector:
            for stream in (popen.stdout, popen.stderr):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            # It may close its streams and go on: only its end is the end.
            while not (has_ended := popen.poll() is not None) or selector.get_map():
                has_news = self._read(selector)
                self.wall_s = time.monotonic() - self._began
                if (has_ended and not has_news) or self._process.ended_for or self._fills_up():
                    break
        code = popen.poll()
        if limit := self._process.ended_for:
            self.problem = f"was ended because {limit}"
        elif code and not self.problem:
            self.problem = f"ended with exit code {code}"
        if self.problem:
            self.problem += f" after {self.wall_s:.1f} s{self._last_words()}"

    def _read(self, selector: selectors.BaseSelector) -> bool:
        """Take what has been printed; False if there was nothing for a while."""
        if not selector.get_map():
            time.sleep(_POLL_S)
            return False
        events = selector.select(_POLL_S)
        self.wall_s = time.monotonic() - self._began
        for key, _ in events:
            if not (data := os.read(key.fd, 1 << 16)):
                selector.unregister(key.fileobj)
            elif key.fileobj is self._process.popen.stderr:
                self._stderr = (self._stderr + data)[-_KEPT:]
            else:
                self._take(data)
        return bool(events)

    def _take(self, data: bytes) -> None:
        """Note when lines of the trainer's log arrive that say how long it has trained."""
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-_LINE:]
        for line in lines:
            found = parse_line(line[:_LINE].decode("utf-8", "replace"))
            if found is not None and found[0] in ("counted", "step", "stop"):
                self.marks[1:] = [(self.wall_s, float(found[1]["ms"]) / 1000)]

    def _fills_up(self) -> bool:
        if self.wall_s > self._looked_s + 1:
            self._looked_s = self.wall_s
            if _size(self._out) > self._limit_bytes:
                self.problem = f"wrote more than {self._limit_bytes:,} bytes and was ended"
        return bool(self.problem)

    def _last_words(self) -> str:
        """The last line on stderr, without what steers a terminal."""
        lines = [line for line in self._stderr.splitlines() if line.strip()]
        if not lines:
            return ""
        text = lines[-1][:200].decode("utf-8", "replace")
        return "; it last said: " + "".join(c if c.isprintable() else " " for c in text)


def _size(folder: Path) -> int:
    """Bytes below a folder; links are not followed."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found += Path(place, name).lstat().st_size
    return found
