"""What Ctrl-C and SIGTERM do: end a program cleanly, and end a training run with its checkpoint."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from speedrun.errors import SpeedrunError

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class RunInterruptedError(SpeedrunError):
    """A signal ended the run; its checkpoint is usable. Exit code: the shell's 128 + n."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Noted:
    """In the `with` block SIGINT and SIGTERM are only noted, once: a second one acts as before."""

    number = 0
    """The signal that came, or 0."""

    def __enter__(self) -> Noted:
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._note) for number in _WORDS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def exit_cleanly() -> None:
    """From now on both signals unwind the program through its `with` blocks; it exits with 128 + n.

    Python's own SIGTERM would leave the judge's private folder behind.
    """
    for number in _WORDS:
        signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    print(_WORDS[signal.Signals(number)], file=sys.stderr)
    sys.exit(128 + number)
