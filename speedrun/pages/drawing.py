"""SVG, element by element: whatever is put into a drawing is escaped on the way.

Colours and fonts are classes of the page's style sheet, so that a drawing follows it into the dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Value = str | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure of a page: drawn for a wide and for a narrow screen, and told as a table."""

    title: str
    description: str
    """What a person who does not see it should know; also the caption."""
    wide: Markup
    narrow: Markup
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """The same as a table; empty where the page has the numbers elsewhere."""
    legend: tuple[tuple[int, str], ...] = ()
    """Tones and names, for screens on which they do not fit beside the curves."""


@dataclass(slots=True)
class Drawing:
    """One SVG that grows from back to front."""

    width: float
    height: float
    parts: list[Markup] = field(default_factory=list)

    def add(self, tag: str, text: str = "", *, title: str = "", **attributes: Value) -> None:
        """Append an element. `class_` is `class`, other underscores are dashes.

        `title` becomes what a pointer that rests on the element shows.
        """
        inside = escape(text)
        if title:
            inside = Markup("<title>{}</title>").format(title) + inside
        self.parts.append(Markup("<{0}{1}>{2}</{0}>").format(tag, _written(attributes), inside))

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        """A polyline through places."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add("polyline", points=places, class_=class_)

    def text(self, x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> None:
        """A label; `anchor` says which end of it is at x."""
        self.add("text", text, x=x, y=y, class_=class_ or "label", text_anchor=anchor)

    def finish(self, class_: str, title: str, description: str) -> Markup:
        """The picture as one image with a name and a description for who hears it."""
        return Markup(
            '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><desc>{}</desc>{}</svg>'
        ).format(
            class_,
            _number(self.width),
            _number(self.height),
            title,
            description,
            Markup("").join(self.parts),
        )


def _written(attributes: dict[str, Value]) -> Markup:
    return Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"),
            value if isinstance(value, str) else _number(value),
        )
        for name, value in attributes.items()
    )


def _number(value: float) -> str:
    text = f"{value:.1f}"
    return text.removesuffix(".0")
