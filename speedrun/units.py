"""Sizes and durations as people write them. Sizes are decimal: 16MB is 16,000,000 bytes."""

from __future__ import annotations

import re

from speedrun.errors import ConfigError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds of `600s`, `10min`, `1h30m` or a bare number of seconds.

    Raises
        ConfigError: the text is not a positive duration.
    """
    compact = text.replace(" ", "")
    seconds = 0.0
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        seconds = float(compact)
    elif "".join(part.group(0) for part in _DURATION_PART.finditer(compact)) == compact:
        for part in _DURATION_PART.finditer(compact):
            seconds += float(part.group(1)) * _SECONDS[part.group(2).lower()]
    if seconds <= 0:
        raise ConfigError(f"{text!r} is not a duration; write e.g. 600s, 10min or 1h30m")
    return seconds


def parse_size(text: str) -> int:
    """Bytes of `16MB`, `16_000_000` or `950kB`; decimal units.

    Raises
        ConfigError: the text is not a positive whole number of bytes.
    """
    match = re.fullmatch(r"([\d_,]+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    unit = match.group(2).lower() if match else "?"
    if match is None or unit not in _BYTES:
        raise ConfigError(f"{text!r} is not a size; write e.g. 16MB or 16000000 (decimal)")
    size = float(match.group(1).replace("_", "").replace(",", "")) * _BYTES[unit]
    if size < 1 or size != int(size):
        raise ConfigError(f"{text!r} is not a positive whole number of bytes")
    return int(size)
