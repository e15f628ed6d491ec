"""Reads a page as strictly as a browser is lenient, and says what it would load or run."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "link", "img", "hr", "area", "base", "col", "embed", "source"}


class Page(HTMLParser):
    """Elements in order, and everything that is wrong with them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[tuple[str, str]] = []
        self.source = data.decode()
        self.feed(self.source)
        self.close()
        if self.open:
            self.wrong.append(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) != len(names):
            self.wrong.append(f"<{tag}> has an attribute twice: {names}")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.pieces.append((self.open[-1], data))

    def inside(self, tag: str) -> str:
        """What stands directly in the elements of a name."""
        return "".join(text for where, text in self.pieces if where == tag)

    def all(self, name: str) -> list[str]:
        """Values of an attribute, in order."""
        return [
            value or "" for _, attrs in self.elements for key, value in attrs.items() if key == name
        ]

    @property
    def ids(self) -> list[str]:
        return self.all("id")

    @property
    def text(self) -> str:
        """All text that is neither style nor script."""
        parts = [text for tag, text in self.pieces if tag not in ("style", "script")]
        return " ".join("".join(parts).split())


def assert_sound(page: Page) -> None:
    """Well formed, and nothing in it can load or run but the style and the script it names."""
    assert page.wrong == []
    assert len(set(page.ids)) == len(page.ids), "an id twice"
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and tags.count("style") == 1 and tags.count("main") == 1
    assert not {"link", "iframe", "object", "embed", "base", "form", "img"} & set(tags)
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    (policy,) = [value for value in page.all("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    for tag in ("script", "style"):
        digest = hashlib.sha256(page.inside(tag).encode()).digest()
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert not [value for name in ("href", "src") for value in page.all(name) if ":" in value]
    assert not re.search(r"url\(|@import", page.inside("style"))
    for name in page.all("aria-labelledby"):
        assert set(name.split()) <= set(page.ids), name
