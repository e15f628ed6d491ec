"""What a check of a dataset found: one line for each thing that was looked at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["PASS", "FAIL", "UNDECIDED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing: what was found, what was expected, and what to do if they differ."""

    id: str
    status: Status
    found: str = ""
    expected: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All lines of a check."""

    folder: str
    fingerprint: str
    """Of the dataset; empty if it has no readable manifest."""
    lines: tuple[Line, ...]

    @property
    def status(self) -> Status:
        """FAIL if a line fails, else UNDECIDED if one could not be decided, else PASS."""
        found = {line.status for line in self.lines}
        return "FAIL" if "FAIL" in found else "UNDECIDED" if "UNDECIDED" in found else "PASS"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 something is wrong, 2 something could not be decided."""
        return {"PASS": 0, "FAIL": 1, "UNDECIDED": 2}[self.status]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"status": self.status, **dataclasses.asdict(self)}


def passed(name: str, found: str, expected: str = "") -> Line:
    """A line that is as it should be."""
    return Line(id=name, status="PASS", found=found, expected=expected)


def failed(name: str, found: str, expected: str = "", fix: str = "prepare or fetch again") -> Line:
    """A line that is not."""
    return Line(id=name, status="FAIL", found=found, expected=expected, fix=fix)


def undecided(name: str, found: str, fix: str = "") -> Line:
    """A line that nobody can decide with what is here."""
    return Line(id=name, status="UNDECIDED", found=found, fix=fix)


def compared(name: str, found: str, wrong: list[str], expected: str = "") -> Line:
    """PASS if nothing is wrong, else FAIL with the first few wrong things."""
    if not wrong:
        return passed(name, found, expected)
    more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
    return failed(name, "; ".join(wrong[:3]) + more, expected)
