"""Which documents are left out, and under which name they are counted."""

from __future__ import annotations

import re
from dataclasses import dataclass

from speedrun.errors import DataError

_DIGITS = b"0123456789"
_LETTERS = bytes(letter for letter in range(128) if chr(letter).isalpha())
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Limits that a document must keep; as they are, all are kept but empty ones."""

    min_bytes: int = 1
    max_bytes: int = 0
    """0 is no limit."""
    max_digit_frac: float = 1.0
    """Digits, of all characters."""
    min_alpha_frac: float = 0.0
    """Letters of any script, of all characters."""

    def __post_init__(self) -> None:
        if self.min_bytes < 0 or self.max_bytes < 0 or 0 < self.max_bytes < self.min_bytes:
            raise DataError(
                f"documents of {self.min_bytes:,} to {self.max_bytes:,} bytes: there are none"
            )
        for name in ("max_digit_frac", "min_alpha_frac"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} = {getattr(self, name)}, must be between 0 and 1")

    def reason(self, text: str, encoded: bytes) -> str:
        """Why a document is left out, or nothing; `encoded` is its UTF-8."""
        if len(encoded) < self.min_bytes:
            return "too short"
        if self.max_bytes and len(encoded) > self.max_bytes:
            return "too long"
        if self.max_digit_frac < 1 and digit_frac(text, encoded) > self.max_digit_frac:
            return "too many digits"
        if self.min_alpha_frac > 0 and alpha_frac(text, encoded) < self.min_alpha_frac:
            return "too few letters"
        return ""


def digit_frac(text: str, encoded: bytes) -> float:
    """Share of the characters that are digits, 0 to 9."""
    return _count(encoded, _DIGITS) / max(len(text), 1)


def alpha_frac(text: str, encoded: bytes) -> float:
    """Share of the characters that are letters, as `str.isalpha` has it."""
    letters = _count(encoded, _LETTERS)
    if len(text) != len(encoded):
        letters += sum(map(str.isalpha, "".join(_BEYOND_ASCII.findall(text))))
    return letters / max(len(text), 1)


def _count(encoded: bytes, kinds: bytes) -> int:
    # ASCII bytes never are a part of another character. Deleting runs at a GB/s, counting does not.
    return len(encoded) - len(encoded.translate(None, kinds))
