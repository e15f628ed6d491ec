"""What forensics reports: findings, each with a file, a line and a sentence; never an exception."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_SHOWN = 160


class Severity(StrEnum):
    """How much a finding weighs, heaviest first."""

    BROKEN = "BROKEN"
    """The record's own figures break a rule of its track."""
    CONTRADICTION = "CONTRADICTION"
    """Two figures of the record exclude each other, so one of them is not of this run."""
    UNDECIDED = "UNDECIDED"
    """Something could not be read, or says too little to be judged."""
    LOOK = "LOOK"
    """May well be right; a person should look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a reviewer should know. Text from files is cleaned when a finding is made."""

    id: str
    """Kebab-case name of the check, e.g. `training-time`."""
    severity: Severity
    file: str
    """Path below the record's folder; `.` is the folder itself."""
    line: int
    """Counted from 1; 0 where the file or folder as a whole is meant."""
    found: str
    expected: str
    sentence: str

    def __post_init__(self) -> None:
        for field in ("file", "found", "expected", "sentence"):
            limit = 4 * _SHOWN if field == "sentence" else _SHOWN
            object.__setattr__(self, field, clean(getattr(self, field), limit))

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return (
            f"{self.severity:<13} {self.id:<18} {place}: "
            f"{self.found}, expected {self.expected}: {self.sentence}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings about one record."""

    record: str
    track: str
    """Name of the track whose limits were applied; empty if none is known."""
    logs: tuple[str, ...]
    claims: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The reports about everything below one path."""

    path: str
    reports: tuple[Report, ...]
    notes: tuple[str, ...] = ()
    """What was left out of the walk, and why. With a note, nothing is called clean."""

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(f.severity is severity for report in self.reports for f in report.findings)

    @property
    def exit_code(self) -> int:
        """0 nothing breaks a rule, 1 a rule is broken or figures exclude each other, 2 undecided.

        Figures that exclude each other break the rule that logs, code and claim belong together.
        """
        if self.count(Severity.BROKEN) or self.count(Severity.CONTRADICTION):
            return 1
        if self.count(Severity.UNDECIDED) or self.notes or not self.reports:
            return 2
        return 0

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"exit_code": self.exit_code, **dataclasses.asdict(self)}


def clean(text: str, limit: int = _SHOWN) -> str:
    """Text from a file, safe to print: no control, direction or escape characters, cut to size."""
    kept = text if len(text) <= limit else text[: limit - 3] + "..."
    if kept.isprintable():
        return kept
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept
    )
