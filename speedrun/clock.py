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
        except (ValueError, KeyError, TypeError) as error:
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
        self._open: list[tuple[str, bool, dict[str, Any]]] = []
        self._segment_start_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Budgeted seconds so far, the running phase included."""
        running = self._open and self._open[-1][1]
        return self._spent_s + (self._time_s() - self._segment_start_s if running else 0.0)

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
        if self._open:
            self._close_segment()
        self._open.append((name, on_budget, dict(details)))
        self._segment_start_s = self._time_s()
        try:
            yield self._open[-1][2]
        finally:
            self._close_segment()
            self._open.pop()
            self._segment_start_s = self._time_s()

    def give_back(self, *, since_s: float) -> float:
        """End the running budgeted segment at the moment when `elapsed_s` was `since_s`.

        For work whose result is thrown away: a step that outlasted the budget. What ran after that
        moment is booked off the budget as `discarded`. Returns the seconds given back.
        """
        name, on_budget, details = self._open[-1]
        assert on_budget, "only budgeted time can be given back"
        stop_s = self._segment_start_s + since_s - self._spent_s
        given_back_s = self._time_s() - stop_s
        self._close_segment(stop_s=stop_s)
        self._open.append((f"discarded {name}", False, dict(details)))
        self._segment_start_s = stop_s
        self._close_segment()
        self._open.pop()
        self._segment_start_s = self._time_s()
        return given_back_s

    def _time_s(self) -> float:
        return self._now() - self._origin_s

    def _close_segment(self, stop_s: float | None = None) -> None:
        name, on_budget, details = self._open[-1]
        stop_s = self._time_s() if stop_s is None else stop_s
        phase = Phase(
            name=name,
            start_s=self._segment_start_s,
            stop_s=stop_s,
            on_budget=on_budget,
            details=dict(details),
        )
        self.ledger.append(phase)
        if on_budget:
            self._spent_s += phase.seconds


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
