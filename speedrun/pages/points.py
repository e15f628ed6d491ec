"""Scattered points with their frontier: the ladder over time, scores against bytes or seconds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from speedrun.pages.drawing import Chart, Drawing
from speedrun.pages.lines import Quantity, clipped, labels
from speedrun.pages.scales import Scale, day_ticks, decimals, ticks

WIDE, HALF, NARROW = (1080.0, 400.0), (520.0, 340.0), (340.0, 300.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point."""

    x: float
    y: float
    kind: str
    """`record`, `published` or `other`: the style sheet draws them apart."""
    row: str
    """Id of its row in the page's table."""
    name: str
    said: str
    """What a pointer on it shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The best so far, as a staircase."""

    marks: tuple[Mark, ...]
    kind: str
    is_named: bool = True
    """Whether its larger steps carry their names."""


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: _Box) -> bool:
        return not (
            self.right < other.left
            or other.right < self.left
            or self.bottom < other.top
            or other.bottom < self.top
        )


def point_chart(
    marks: Sequence[Mark],
    frontiers: Sequence[Frontier],
    *,
    title: str,
    description: str,
    x: Quantity,
    y_label: str,
    limit: tuple[float, str] | None = None,
    is_time: bool = False,
    size: tuple[float, float] = WIDE,
) -> Chart | None:
    """Draw points, staircases through the best of them, and a limit; None for fewer than two.

    Points far from the records stay out of the frame, at its edge, and the description says how
    many they are: the chart is about what records have in common.
    """
    if len(marks) < 2:
        return None
    down_ends, across_ends = _vertical(marks), _horizontal(marks, limit)
    beyond = sum(mark.y > down_ends[1] or mark.x > across_ends[1] for mark in marks)
    if beyond:
        points = "points lie" if beyond > 1 else "point lies"
        description += f" {beyond} {points} beyond the frame, drawn at its edge."

    def draw(size: tuple[float, float], class_: str) -> Markup:
        drawing = Drawing(*size)
        width, height = size
        across = Scale(*across_ends, 56, width - 20)
        down = Scale(*down_ends, height - 46, 34)
        _axes(drawing, across, down, x, y_label, is_time)
        if limit is not None and across.low <= limit[0] <= across.high:
            place = across(limit[0])
            drawing.add("line", x1=place, x2=place, y1=down.stop, y2=down.start, class_="limit")
            drawing.text(place - 6, down.stop + 10, limit[1], "tick", "end")
        for frontier in frontiers:
            _staircase(drawing, frontier, across, down)
        for mark in sorted(marks, key=lambda mark: _ORDER[mark.kind]):
            drawing.add(
                "circle",
                cx=across.held(mark.x),
                cy=down.held(mark.y),
                r=4 if mark.kind == "record" else 3.4,
                class_=f"mark {mark.kind}",
                data_row=mark.row,
                title=mark.said if class_ == "wide" else "",
            )
        taken = [_around(across.held(mark.x), down.held(mark.y), 3) for mark in marks]
        for frontier in frontiers:
            if frontier.is_named:
                count = 7 if width > 800 else 3 if class_ == "wide" else 2
                _name_steps(drawing, frontier, across, down, count, taken)
        return drawing.finish(class_, title, description)

    return Chart(
        title=title,
        description=description,
        wide=draw(size, "wide"),
        narrow=draw(NARROW, "narrow"),
    )


_ORDER = {"other": 0, "published": 1, "record": 2}


def frontier_of(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Those that beat all to the left of them, by `x`; of equal `x` the best."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, mark.y)):
        if not best or mark.y < best[-1].y:
            best.append(mark)
    return tuple(best)


def _vertical(marks: Sequence[Mark]) -> tuple[float, float]:
    """Ends of the axis of scores: all that count as records, verified or not."""
    values = [mark.y for mark in marks]
    low, high = min(values), max(_counted(marks, "y"))
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _horizontal(marks: Sequence[Mark], limit: tuple[float, str] | None) -> tuple[float, float]:
    """Ends of the axis across; the limit is within if it is anywhere near."""
    most = max(_counted(marks, "x"))
    values = [mark.x for mark in marks if mark.x <= most]
    low, high = min(values), max(values)
    if limit is not None and low < limit[0] < high + (high - low) + 0.1 * limit[0]:
        high = max(high, limit[0])
    room = 0.04 * (high - low) or 0.02 * (abs(high) or 1.0)
    return low - room, high + room


def _counted(marks: Sequence[Mark], along: str) -> list[float]:
    """Places of the records; of all points if none is one."""
    return [getattr(mark, along) for mark in marks if mark.kind != "other"] or [
        getattr(mark, along) for mark in marks
    ]


def _axes(
    drawing: Drawing, across: Scale, down: Scale, x: Quantity, y_label: str, is_time: bool
) -> None:
    drawing.text(0, 12, y_label, "axis-title")
    marks = ticks(down.low, down.high, 5)
    for tick in marks:
        place = down(tick)
        drawing.add("line", x1=across.start, x2=across.stop, y1=place, y2=place, class_="grid")
        drawing.text(across.start - 8, place + 4, f"{tick:.{decimals(marks)}f}", "tick", "end")
    about = max(int((across.stop - across.start) / 100), 2)
    places: Sequence[float] = ticks(across.low, across.high, about)
    if is_time:
        places = day_ticks(round(across.low), round(across.high), about + 1)
    places = [tick for tick in places if across.low <= tick <= across.high]
    for tick, said in zip(places, labels(x, places), strict=True):
        drawing.text(across(tick), down.start + 18, said, "tick", "middle")
    drawing.text(across.stop, down.start + 40, x.label, "axis-title", "end")


def _staircase(drawing: Drawing, frontier: Frontier, across: Scale, down: Scale) -> None:
    if not frontier.marks:
        return
    places: list[tuple[float, float]] = []
    for mark in frontier.marks:
        if places:
            places.append((across(mark.x), places[-1][1]))
        places.append((across(mark.x), down(mark.y)))
    places.append((across.stop, places[-1][1]))
    drawing.line(places, f"frontier {frontier.kind}")


def _name_steps(
    drawing: Drawing,
    frontier: Frontier,
    across: Scale,
    down: Scale,
    count: int,
    taken: list[_Box],
) -> None:
    """Name the newest, the first and the largest steps, where there is room beside them."""
    marks = frontier.marks
    gains = {mark.row: before.y - mark.y for before, mark in itertools.pairwise(marks)}
    by_gain = sorted(marks[1:-1], key=lambda mark: -gains[mark.row])
    for mark in dict.fromkeys([marks[-1], marks[0], *by_gain]) if marks else ():
        if not count:
            return
        text = clipped(mark.name, 26)
        x, y, width = across(mark.x), down.held(mark.y), 6.1 * len(text)
        for anchor, left, base in (
            ("start", x + 9, y - 7),
            ("end", x - 9 - width, y + 15),
            ("start", x + 9, y + 16),
            ("end", x - 9 - width, y - 8),
        ):
            box = _Box(left - 2, base - 11, left + width + 2, base + 3)
            if (
                box.left < across.start
                or box.right > drawing.width
                or box.bottom > down.start
                or box.top < down.stop - 12
                or any(box.touches(other) for other in taken)
            ):
                continue
            place = left if anchor == "start" else left + width
            drawing.text(place, base, text, f"label name {frontier.kind}", anchor)
            taken.append(box)
            count -= 1
            break


def _around(x: float, y: float, reach: float) -> _Box:
    return _Box(x - reach, y - reach, x + reach, y + reach)
