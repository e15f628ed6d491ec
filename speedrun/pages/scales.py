"""From numbers to places and words: scales, round ticks, and how quantities are written."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps numbers from `low` to `high` to places from `start` to `stop`, in pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond the ends lies beyond them."""
        width = self.high - self.low
        share = (value - self.low) / width if width else 0.5
        return self.start + share * (self.stop - self.start)

    def held(self, value: float) -> float:
        """The same, kept within the ends."""
        return self(min(max(value, self.low), self.high))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, `about` so many."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return [low] if math.isfinite(low) else []
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    # Rounded, so that 0.30000000000000004 is not what a label shows.
    return [round((first + number) * step, 12) for number in range(count)]


def day_ticks(first: int, last: int, about: int) -> list[int]:
    """Ordinal days that make good labels of a time from `first` to `last`."""
    span = max(last - first, 1)
    for step in (1, 2, 7, 14):
        if span / step <= about + 1:
            return list(range(first - first % step + (step if first % step else 0), last + 1, step))
    day = datetime.date.fromordinal(first).replace(day=1)
    found: list[int] = []
    while day.toordinal() <= last:
        if day.toordinal() >= first:
            found.append(day.toordinal())
        day = (day + datetime.timedelta(days=32)).replace(day=1)
    skip = max(math.ceil(len(found) / max(about, 1)), 1)
    return found[::skip]


def decimals(places: Iterable[float]) -> int:
    """Digits after the point that tell these ticks apart."""
    values = sorted(set(places))
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0


def spread_out(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move places as little as a simple pass can so that none is closer than `gap` to another.

    For labels at the ends of lines: pushed down in order, then up again from the last place.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    last = low - gap
    for index in order:
        last = placed[index] = max(placed[index], last + gap)
    following = high + gap
    for index in reversed(order):
        following = placed[index] = min(placed[index], following - gap)
    return placed


def say_bytes(value: float) -> str:
    """`15.9 MB`, in decimal units, as the rules count."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= unit:
            return f"{_short(value / unit)} {name}"
    return f"{value:.0f} B"


def say_seconds(value: float) -> str:
    """`59.9 s`, `10 min` or `4.5 h`."""
    if abs(value) >= 7200:
        return f"{_short(value / 3600)} h"
    if abs(value) >= 600:
        return f"{_short(value / 60)} min"
    if 0 < abs(value) < 0.1:
        return f"{_short(value * 1000)} ms"
    return f"{_short(value)} s"


def say_count(value: float) -> str:
    """`512`, `20.5 k`, `8.1 M`, for axes of steps and tokens."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{_short(value / unit)} {name}"
    return _short(value)


def say_day(ordinal: float) -> str:
    """`19 Mar` of an ordinal day."""
    return say_date(datetime.date.fromordinal(round(ordinal)))


def say_date(day: datetime.date) -> str:
    """`19 Mar`, in English whatever the system speaks."""
    return f"{day.day} {_MONTHS[day.month - 1]}"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _short(value: float) -> str:
    """Three digits that matter, without zeros behind the point."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{float(text):.0f}" if "e" in text else text
