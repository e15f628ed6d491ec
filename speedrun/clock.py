"""The training clock and its ledger: what was done when, and how much of the budget it took.

Budgeted time is the sum of the phases that are marked so, and each phase is one line of the
ledger, so what the trainer obeyed and what the judge adds up are the same numbers. The time source
is passed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedrun.errors import OutputError, SubmissionError

FIRST_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One line of the ledger; times in seconds since the ledger began."""

    name: str
    start_s: float
    stop_s: float
    on_budget: bool
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.stop_s - self.start_s


class Ledger:
    """An append-only file of phases in which each line carries the hash of the line before."""

    def __init__(self, path: Path | None) -> None:
        """Continue the ledger at `path`, or begin it; `None` keeps it in memory only.

        Raises
            SubmissionError: the file is there and its chain is broken.
        """
        self.path = path
        self.phases: list[Phase] = []
        self._last_hash = FIRST_HASH
        if path is not None and path.exists():
            self.phases = read_ledger(path)
            lines = path.read_bytes().splitlines()
            self._last_hash = _hash(lines[-1]) if lines else FIRST_HASH

    @property
    def end_s(self) -> float:
        """When the last phase stopped."""
        return self.phases[-1].stop_s if self.phases else 0.0

    @property
    def budgeted_s(self) -> float:
        """Seconds of all phases on the budget."""
        return sum(phase.seconds for phase in self.phases if phase.on_budget)

    def append(self, phase: Phase) -> None:
        """Write one phase to disk before returning.

        Raises
            OutputError: the file cannot be written.
        """
        entry = {
            "phase": phase.name,
            "start_s": round(phase.start_s, 6),
            "stop_s": round(phase.stop_s, 6),
            "on_budget": phase.on_budget,
            "details": phase.details,
            "previous": self._last_hash,
        }
        line = json.dumps(entry, sort_keys=True).encode()
        if self.path is not None:
            try:
                with self.path.open("ab") as file:
                    file.write(line + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(f"{self.path}: cannot write the ledger: {error}") from error
        self._last_hash = _hash(line)
        self.phases.append(phase)


def read_ledger(path: Path) -> list[Phase]:
    """Read a ledger and check its chain of hashes and that time only runs forward.

    Raises
        SubmissionError: a line is not one of ours, follows another line than it says, or overlaps
            the one before it.
    """
    phases: list[Phase] = []
    previous = FIRST_HASH
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SubmissionError(f"{path}: cannot read the ledger: {error}") from error
    for number, line in enumerate(lines, start=1):
        where = f"{path.name}, line {number}"
        try:
            entry = json.loads(line)
            phase = Phase(
                name=str(entry["phase"]),
                start_s=float(entry["start_s"]),
                stop_s=float(entry["stop_s"]),
                on_budget=entry["on_budget"] is True,
                details=dict(entry["details"]),
            )
            follows = entry["previous"]
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise SubmissionError(f"{where}: not a ledger entry: {error!r}") from error
        if follows != previous:
            raise SubmissionError(f"{where}: the chain is broken: an earlier line was changed")
        earlier_s = phases[-1].stop_s if phases else 0.0
        if not earlier_s - 1e-5 <= phase.start_s <= phase.stop_s:
            raise SubmissionError(
                f"{where}: phase {phase.name!r} runs from {phase.start_s:.6f} s to "
                f"{phase.stop_s:.6f} s, the phase before it stopped at {earlier_s:.6f} s"
            )
        phases.append(phase)
        previous = _hash(line)
    return phases


@dataclass(slots=True)
class _Open:
    """A phase that is running or interrupted by an inner one; moments as in the ledger."""

    name: str
    on_budget: bool
    details: dict[str, Any]
    kept_s: float | None = None


class Clock:
    """Seconds spent of a budget. Phases nest: an inner phase interrupts the outer one.

    `with clock.phase("train", on_budget=True)` starts the budgeted time; a
    `clock.phase("validate")` inside it stops the train segment, and a new train segment follows.
    """

    def __init__(
        self, budget_s: float, ledger: Ledger, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Start at what the ledger already holds, so that a resumed run keeps its account."""
        self.budget_s = budget_s
        self.ledger = ledger
        self._now = now
        self._origin_s = now() - ledger.end_s
        self._spent_s = ledger.budgeted_s
        self._open: list[_Open] = []
        self._segment_start_s = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the ledger began, budgeted or not, as exactly as the ledger writes them."""
        return round(self._now() - self._origin_s, 6)

    @property
    def elapsed_s(self) -> float:
        """Budgeted seconds so far, the running phase included."""
        running = self._open and self._open[-1].on_budget
        return self._spent_s + (self.now_s - self._segment_start_s if running else 0.0)

    @property
    def remaining_s(self) -> float:
        """Budgeted seconds left; negative when the budget is overrun."""
        return self.budget_s - self.elapsed_s

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(max(self.elapsed_s / self.budget_s, 0.0), 1.0)

    @contextmanager
    def phase(
        self, name: str, *, on_budget: bool = False, **details: Any
    ) -> Iterator[dict[str, Any]]:
        """Book the block under `name`; what is added to the yielded dict goes into its line."""
        self._segment_start_s = self._close_segment() if self._open else self.now_s
        phase = _Open(name, on_budget, dict(details))
        self._open.append(phase)
        try:
            yield phase.details
        finally:
            stop_s = self._close_segment()
            self._open.pop()
            if phase.kept_s is not None:
                self._book(f"discarded {name}", stop_s, self.now_s, False, phase.details)
            self._segment_start_s = self.now_s

    def keep(self, elapsed_s: float) -> None:
        """Say that the running phase's work counts up to the moment when `elapsed_s` was this.

        From the first call on, only what is kept is on the budget. What the phase does after its
        last call, a step that outlasts the budget or an exception, is booked as discarded when it
        ends; an inner phase begins where the outer one was kept.
        """
        kept_s = self._segment_start_s + elapsed_s - self._spent_s
        self._open[-1].kept_s = round(kept_s, 6)

    def _close_segment(self) -> float:
        """Book the running phase so far; returns the moment up to which it was booked."""
        phase, stop_s = self._open[-1], self.now_s
        if phase.kept_s is not None:
            stop_s = max(phase.kept_s, self._segment_start_s)
        self._book(phase.name, self._segment_start_s, stop_s, phase.on_budget, phase.details)
        return stop_s

    def _book(
        self, name: str, start_s: float, stop_s: float, on_budget: bool, details: dict[str, Any]
    ) -> None:
        phase = Phase(
            name=name,
            start_s=start_s,
            stop_s=stop_s,
            on_budget=on_budget,
            details=dict(details),
        )
        self.ledger.append(phase)
        if on_budget:
            self._spent_s += phase.seconds


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
