"""Pages from templates: every value is escaped, and nothing but our own style and script can run.

Records, logs and run folders are written by strangers. Three walls keep their words words: the
templates escape whatever is put into them; the script reads the page and never builds markup from
text; and a policy in the page's head allows exactly one style and one script, by their hashes, and
nothing from anywhere else. So a page is one file that opens from a disk without a network.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from speedrun import __version__
from speedrun.pages.lines import TONES

TEMPLATES = Path(__file__).parent / "templates"
TEXT_LIMIT = 2_000
"""Characters of one value from a record that a page shows."""


def render(template: str, **values: Any) -> bytes:
    """A whole page; `values` are what the template names."""
    page = _environment().get_template(template).render(values)
    # UTF-8 has no lone surrogates, and a name out of JSON may hold one.
    return page.encode("utf-8", "replace")


def tidy(value: str) -> str:
    """Text of others as it may be shown: without control characters, and not without end."""
    kept = "".join(
        letter
        for letter in value[: TEXT_LIMIT + 1]
        if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
    )
    return kept if len(kept) <= TEXT_LIMIT else f"{kept[:TEXT_LIMIT]}…"


def _tidied(value: object) -> object:
    """What a template puts out: our own markup as it is, text tidied and then escaped."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return tidy(value)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_tidied,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "policy": policy,
        "version": __version__,
        "tones": range(TONES),
    }
    return environment


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
