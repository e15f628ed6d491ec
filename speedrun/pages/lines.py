"""Curves: quantities over time, tokens or steps, with their names written at their ends."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from speedrun.pages.drawing import Chart, Drawing
from speedrun.pages.scales import Scale, decimals, spread_out, ticks

Points = Sequence[tuple[float, float]]
TONES = 8
"""Colours of the style sheet that tell curves apart; the ninth begins anew."""
WIDE, NARROW = (560.0, 320.0), (340.0, 250.0)
_DRAWN_POINTS = 400
_TABLE_ROWS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What an axis measures and how its numbers are written."""

    label: str
    say: Callable[[float], str] | None = None
    """None: plain numbers, with as many digits as the ticks need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    points: Points
    tone: int = 0
    is_faint: bool = False
    """Drawn behind the others and not named: what a smoothed curve was made from."""
    is_dots: bool = False
    """Dots instead of a line: moments that have no course between them."""


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    description: str,
    x: Quantity,
    y: Quantity,
    from_zero: bool = False,
) -> Chart | None:
    """Draw curves into one frame; None if none of them has two points that are numbers."""
    finite = [_finite(curve) for curve in curves]
    shown = [curve for curve in finite if len(curve.points) > 1 or (curve.is_dots and curve.points)]
    if not any(len(curve.points) > 1 for curve in shown):
        return None
    named = [curve for curve in shown if not curve.is_faint]

    def draw(size: tuple[float, float], class_: str) -> Markup:
        names = len(named) > 1 and class_ == "wide"
        frame = Frame.around(shown, x, y, size, names=names, from_zero=from_zero)
        for curve in sorted(shown, key=lambda curve: not curve.is_faint):
            frame.draw(curve)
        if names:
            frame.name_ends(named)
        return frame.drawing.finish(class_, title, description)

    say_x = x.say or str
    return Chart(
        title=title,
        description=description,
        wide=draw(WIDE, "wide"),
        narrow=draw(NARROW, "narrow"),
        legend=tuple((curve.tone % TONES, curve.name) for curve in named) if named[1:] else (),
        head=("curve", x.label, y.label),
        rows=tuple(
            (curve.name, say_x(at), _digits(value) if y.say is None else y.say(value))
            for curve in named
            for at, value in _some(curve.points, _TABLE_ROWS)
        ),
    )


class Frame:
    """Axes with room for curves, and the scales that place them."""

    def __init__(self, size: tuple[float, float], x: Scale, y: Scale) -> None:
        self.drawing, self.x, self.y = Drawing(*size), x, y

    @classmethod
    def around(
        cls,
        curves: Sequence[Curve],
        x: Quantity,
        y: Quantity,
        size: tuple[float, float],
        *,
        names: bool,
        from_zero: bool,
    ) -> Frame:
        """A frame that holds the curves; `names` leaves room for them on the right."""
        width, height = size
        along = [at for curve in curves for at, _ in curve.points]
        low, high = reach(curves, from_zero=from_zero)
        longest = max(len(clipped(curve.name)) for curve in curves)
        right = 16 + 6.4 * longest if names else 24
        marks = [tick for tick in ticks(low, high, 5) if low <= tick <= high]
        said = labels(y, marks)
        left = 12 + 6.6 * max(map(len, said), default=1)
        frame = cls(
            size,
            Scale(min(0.0, *along), max(along) or 1.0, left, width - right),
            Scale(low, high, height - 44, 32),
        )
        frame.rule(marks, said, y.label)
        frame.measure(x)
        return frame

    def rule(self, marks: Sequence[float], said: Sequence[str], label: str) -> None:
        """Horizontal lines with their numbers, and what they are above them."""
        drawing = self.drawing
        drawing.text(0, 12, label, "axis-title")
        for tick, text in zip(marks, said, strict=True):
            place = self.y(tick)
            drawing.add("line", x1=self.x.start, x2=self.x.stop, y1=place, y2=place, class_="grid")
            drawing.text(self.x.start - 8, place + 4, text, "tick", "end")

    def measure(self, x: Quantity) -> None:
        """Numbers below the frame, and what they are."""
        drawing, bottom = self.drawing, self.y.start
        about = 3 if drawing.width < 400 else 5
        marks = [tick for tick in ticks(self.x.low, self.x.high, about) if tick <= self.x.high]
        for tick, said in zip(marks, labels(x, marks), strict=True):
            drawing.text(self.x(tick), bottom + 18, said, "tick", "middle")
        drawing.text(self.x.stop, bottom + 38, x.label, "axis-title", "end")

    def draw(self, curve: Curve) -> None:
        """A curve, from where it comes into the frame; a later peak is cut off at its edge."""
        points = thinned(curve.points, _DRAWN_POINTS)
        above = itertools.takewhile(lambda point: point[1] > self.y.high, points)
        inside = points[max(sum(1 for _ in above) - 1, 0) :]
        places = [(self.x(at), self.y.held(value)) for at, value in inside]
        tone = f"tone-{curve.tone % TONES}"
        if curve.is_dots:
            for x, y in places:
                self.drawing.add("circle", cx=x, cy=y, r=3.5, class_=f"dot {tone}")
        else:
            self.drawing.line(places, f"curve {tone}{' faint' if curve.is_faint else ''}")

    def name_ends(self, curves: Sequence[Curve]) -> None:
        """Write each curve's name where it ends, moved apart where they would touch."""
        ends = [self.y.held(curve.points[-1][1]) for curve in curves]
        placed = spread_out(ends, 15, self.y.stop, self.y.start)
        for curve, place in zip(curves, placed, strict=True):
            end = self.x(curve.points[-1][0]) + 8
            tone = f"tone-{curve.tone % TONES}"
            self.drawing.text(end, place + 4, clipped(curve.name), f"label name {tone}")


def reach(curves: Sequence[Curve], *, from_zero: bool = False) -> tuple[float, float]:
    """Ends of the vertical axis, without a start that would flatten all that follows.

    A loss begins far above where it spends its time. What is highest in the first twentieth of the
    way may leave the frame if that at least halves it.
    """
    points = [point for curve in curves for point in curve.points]
    along, values = [at for at, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    settled = min(along) + (max(along) - min(along)) / 20
    later = max(value for at, value in points if at >= settled)
    if high - low > 2 * (later - low) > 0:
        high = later + 0.15 * (later - low)
    if from_zero:
        low = min(low, 0.0)
    if low == high:
        low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
    room = 0.04 * (high - low)
    return (low if from_zero else low - room), high + room


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A running mean that forgets over a fortieth of the way, however densely it was measured.

    At the start over a fifth of what has passed, for a loss falls fast while it is young.
    """
    longest = (points[-1][0] - points[0][0]) / 40 or 1.0
    first = before = points[0][0]
    mean = points[0][1]
    found = []
    for at, value in points:
        memory = min(longest, (at - first) / 5)
        keep = math.exp((before - at) / memory) if memory else 0.0
        before, mean = at, keep * mean + (1 - keep) * value
        found.append((at, mean))
    return found


def raw_and_smooth(name: str, points: Points, tone: int) -> list[Curve]:
    """A noisy curve as a faint line with its running mean before it; a short one as it is."""
    if len(points) < 40:
        return [Curve(name=name, points=points, tone=tone)]
    return [
        Curve(name=name, points=points, tone=tone, is_faint=True),
        Curve(name=name, points=smoothed(points), tone=tone),
    ]


def thinned(points: Points, limit: int) -> Points:
    """At most `limit` points that keep the outline: lowest and highest of each stretch."""
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / (limit // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def outliers(values: Sequence[float]) -> list[int]:
    """Places of values far above the others: six robust deviations, and a tenth of the median."""
    if len(values) < 5:
        return []
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    limit = middle + max(6 * spread, 0.1 * middle)
    return [index for index, value in enumerate(values) if value > limit]


def clipped(name: str, limit: int = 18) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def labels(quantity: Quantity, marks: Sequence[float]) -> list[str]:
    """How ticks are written: in the words of the quantity, if those tell them apart."""
    said = [quantity.say(tick) for tick in marks] if quantity.say else []
    if len(set(said)) == len(marks):
        return said
    return [f"{tick:.{decimals(marks)}f}" for tick in marks]


def _finite(curve: Curve) -> Curve:
    points = [
        (float(at), float(value))
        for at, value in curve.points
        if math.isfinite(at) and math.isfinite(value)
    ]
    return dataclasses.replace(curve, points=points)


def _some(points: Points, count: int) -> Points:
    """Evenly spaced members, the last one included."""
    if len(points) <= count:
        return points
    return [points[round(index * (len(points) - 1) / (count - 1))] for index in range(count)]


def _digits(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
