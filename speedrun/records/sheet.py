"""CSV that a spreadsheet may open: no cell of somebody else's becomes a formula there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@")


def sheet(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under a head of `names`.

    Text stands in one line, and gets an apostrophe in front where a spreadsheet would calculate it;
    numbers stay as they are.

    Source
        OWASP, CSV injection.
    """
    target = io.StringIO()
    writer = csv.DictWriter(target, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return target.getvalue()


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return f"'{line}" if line.startswith(_FORMULA) else line
