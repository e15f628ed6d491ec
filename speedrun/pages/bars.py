"""Bars: where bytes went, what rounding costs each tensor, and how the clock was spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from speedrun.clock import Phase
from speedrun.pages.drawing import Chart, Drawing
from speedrun.pages.lines import clipped
from speedrun.pages.scales import Scale, say_seconds, ticks

_ROW = 30.0
_WIDE, _NARROW = 560.0, 340.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One step of a waterfall."""

    name: str
    amount: float
    is_rest: bool = False
    """What is left of the limit, not spent."""


def waterfall(
    parts: Sequence[Part],
    *,
    limit: float | None,
    title: str,
    description: str,
    say: Callable[[float], str],
) -> Chart | None:
    """Bars that begin where the one above ends, up to the sum and the limit; None without parts."""
    if not parts:
        return None
    spent = sum(part.amount for part in parts)
    steps = [*parts]
    if limit is not None and limit > spent:
        steps.append(Part(name="left of the limit", amount=limit - spent, is_rest=True))
    most = max(spent, limit or 0.0) or 1.0

    def draw(width: float, class_: str) -> Markup:
        drawing = Drawing(width, _ROW * (len(steps) + 1) + 14)
        label = 190.0 if class_ == "wide" else 126.0
        across = Scale(0.0, most, label, width - 76)
        at = 0.0
        for number, part in enumerate(steps):
            top = _ROW * number + 6
            name = clipped(part.name, 28 if class_ == "wide" else 18)
            drawing.text(0, top + 14, name, "label")
            start, stop = across(at), across(at + part.amount)
            kind = "rest" if part.is_rest else "spent"
            drawing.add(
                "rect",
                x=start,
                y=top,
                width=max(stop - start, 1.5),
                height=_ROW - 10,
                class_=f"bar {kind}",
            )
            if number < len(steps) - 1:
                drawing.add("line", x1=stop, x2=stop, y1=top, y2=top + _ROW + 10, class_="joint")
            drawing.text(stop + 7, top + 14, say(part.amount), "tick")
            at += part.amount
        top = _ROW * len(steps) + 6
        drawing.text(0, top + 14, "total", "label strong")
        drawing.add(
            "rect",
            x=across(0.0),
            y=top,
            width=max(across(spent) - across(0.0), 1.5),
            height=_ROW - 10,
            class_="bar total",
        )
        drawing.text(across(spent) + 7, top + 14, say(spent), "tick strong")
        return drawing.finish(class_, title, description)

    return Chart(
        title=title,
        description=description,
        wide=draw(_WIDE, "wide"),
        narrow=draw(_NARROW, "narrow"),
        head=("part", "bytes"),
        rows=tuple((part.name, f"{part.amount:,.0f}") for part in steps),
    )


def bars(
    values: Sequence[tuple[str, float]],
    *,
    title: str,
    description: str,
    head: tuple[str, str],
    say: Callable[[float], str],
) -> Chart | None:
    """One bar for each name, all from zero; None without values."""
    if not values:
        return None
    most = max(abs(value) for _, value in values) or 1.0

    def draw(width: float, class_: str) -> Markup:
        drawing = Drawing(width, 24.0 * len(values) + 8)
        label = 200.0 if class_ == "wide" else 130.0
        across = Scale(0.0, most, label, width - 70)
        for number, (name, value) in enumerate(values):
            top = 24.0 * number + 4
            drawing.text(0, top + 12, clipped(name, 30 if class_ == "wide" else 19), "label")
            drawing.add(
                "rect",
                x=label,
                y=top + 1,
                width=max(across(abs(value)) - label, 1.0),
                height=14.0,
                class_="bar spent",
            )
            drawing.text(across(abs(value)) + 7, top + 12, say(value), "tick")
        return drawing.finish(class_, title, description)

    return Chart(
        title=title,
        description=description,
        wide=draw(_WIDE, "wide"),
        narrow=draw(_NARROW, "narrow"),
        head=head,
        rows=tuple((name, say(value)) for name, value in values),
    )


def timeline(phases: Sequence[Phase], *, title: str, description: str) -> Chart | None:
    """One row for each name of a phase, with a bar where the ledger books it; None without any."""
    if not phases:
        return None
    names = list(dict.fromkeys(phase.name for phase in phases))
    end = max(phase.stop_s for phase in phases) or 1.0
    booked = {name: [phase for phase in phases if phase.name == name] for name in names}
    sums = {name: sum(phase.seconds for phase in booked[name]) for name in names}

    def draw(width: float, class_: str) -> Markup:
        height = 26.0 * len(names)
        drawing = Drawing(width, height + 40)
        label = 140.0 if class_ == "wide" else 112.0
        across = Scale(0.0, end, label, width - 66)
        for tick in ticks(0.0, end, 4 if class_ == "wide" else 2):
            place = across(tick)
            drawing.add("line", x1=place, x2=place, y1=0, y2=height, class_="grid")
            drawing.text(place, height + 18, say_seconds(tick), "tick", "middle")
        for number, name in enumerate(names):
            top = 26.0 * number + 4
            drawing.text(0, top + 13, clipped(name, 20 if class_ == "wide" else 16), "label")
            for phase in booked[name]:
                drawing.add(
                    "rect",
                    x=across(phase.start_s),
                    y=top,
                    width=max(across(phase.stop_s) - across(phase.start_s), 1.5),
                    height=18.0,
                    class_="bar spent" if phase.on_budget else "bar rest",
                    title=f"{name}: {phase.start_s:.2f} s to {phase.stop_s:.2f} s",
                )
            stop = across(booked[name][-1].stop_s)
            drawing.text(stop + 7, top + 13, say_seconds(sums[name]), "tick")
        return drawing.finish(class_, title, description)

    return Chart(
        title=title,
        description=description,
        wide=draw(_WIDE, "wide"),
        narrow=draw(_NARROW, "narrow"),
        head=("phase", "from", "to", "seconds", "on the budget"),
        rows=tuple(
            (
                phase.name,
                f"{phase.start_s:.3f} s",
                f"{phase.stop_s:.3f} s",
                f"{phase.seconds:.3f}",
                "yes" if phase.on_budget else "no",
            )
            for phase in phases[:200]
        ),
    )
