"""Numbers as somebody wrote them: a value, what its last digit leaves open, and where it stands.

Claims are rounded to the digits they show, and so are log lines. Two figures agree when the
intervals that they stand for touch; no other tolerance is needed.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_DECIMAL = re.compile(r"[-+]?(\d{1,18})(?:\.(\d{0,18}))?(?:[eE]([-+]?\d{1,2}))?")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number from a file."""

    value: float
    half: float
    """Half a unit of the last digit shown; 0 for counts, which are exact."""
    line: int

    def agrees(self, other: Figure) -> bool:
        """Can both be the same number, rounded?"""
        rounding = 1e-9 * max(abs(self.value), abs(other.value), 1e-9)
        return abs(self.value - other.value) <= self.half + other.half + rounding

    def scaled(self, factor: float) -> Figure:
        """The same figure in another unit."""
        return Figure(self.value * factor, self.half * factor, self.line)


def measured(text: str, line: int) -> Figure | None:
    """A measurement: its last digit is rounded. None for anything but a plain decimal number."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    digits = int(match[3] or 0) - len(match[2] or "")
    return Figure(float(text), 0.5 * 10.0**digits, line)


def counted(text: str, line: int) -> Figure | None:
    """A count of bytes, tokens or steps: exact; thousands may be separated by commas."""
    digits = text.replace(",", "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        return None
    return Figure(float(int(digits)), 0.0, line)


def mean(figures: Sequence[Figure]) -> Figure:
    """The mean, as exact as its parts; it stands where the first one does.

    A mean of several counts may be shown as a whole number, so half a unit of it is open.
    """
    half = statistics.fmean(f.half for f in figures)
    if half == 0 and len(figures) > 1:
        half = 0.5
    return Figure(statistics.fmean(f.value for f in figures), half, figures[0].line)


def largest(figures: Sequence[Figure]) -> Figure:
    """The one with the largest value."""
    return max(figures, key=lambda figure: figure.value)


def smallest(figures: Sequence[Figure]) -> Figure:
    """The one with the smallest value."""
    return min(figures, key=lambda figure: figure.value)


def total(figures: Sequence[Figure]) -> Figure:
    """The sum; it stands where the last one does."""
    return Figure(
        math.fsum(f.value for f in figures), math.fsum(f.half for f in figures), figures[-1].line
    )


def spreads(figures: Sequence[Figure]) -> tuple[Figure, Figure]:
    """Standard deviation of a sample and of a population: both are in use. At least two figures."""
    values = [f.value for f in figures]
    open_half = max(f.half for f in figures)
    return (
        Figure(statistics.stdev(values), open_half, figures[0].line),
        Figure(statistics.pstdev(values), open_half, figures[0].line),
    )


def bytes_per_token(nats: Figure, bpb: Figure) -> Figure | None:
    """`val_loss / ln 2 / val_bpb`: how many bytes somebody's count gives to a token."""
    if nats.value <= 0 or bpb.value <= 0:
        return None
    ratio = nats.value / math.log(2) / bpb.value
    return Figure(ratio, ratio * (nats.half / nats.value + bpb.half / bpb.value), bpb.line)
