"""The published validation split as each tokenizer cuts it, and byte counts known to be wrong.

Tokens and bytes are properties of the data: whoever scores the whole split and counts its bytes
rightly gets these quotients, whatever the model. That makes them fingerprints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NUM_DOCUMENTS = 50_000
"""Documents of the split."""
TOLERANCE = 5e-4
"""Relative. Published scores differ by up to 2e-4 in their windows and cut tails; a bug by 4e-2."""


@dataclass(frozen=True, slots=True)
class Split:
    """The validation documents under one tokenizer."""

    name: str
    tokens: int
    """Tokens that are scored in windows of 2,048."""
    bytes: int
    """Bytes of text behind them, as the contest's own script counts them."""
    note: str = ""
    """What is unusual about an export that is not the published one."""

    @property
    def bytes_per_token(self) -> float:
        """The fingerprint."""
        return self.bytes / self.tokens


PUBLISHED = (
    Split("sp1024", 62_021_632, 151_080_169),
    Split("sp4096", 45_508_608, 151_074_053),
    Split("sp8192", 40_540_160, 151_078_222),
    Split("caseops", 47_851_520, 151_074_499),
)
"""From the logs of the records that introduced them; an independent count (PR #1289 of
openai/parameter-golf) finds 151,073,604 bytes of text."""
OTHER_EXPORTS = (
    Split("sp1024", 63_779_840, 155_769_000, "an older export, scored by the first baseline"),
    Split("sp4096", 45_514_752, 151_094_450, "a second export, PR #1285"),
)


@dataclass(frozen=True, slots=True)
class ByteBug:
    """A way to count too many bytes that has been seen in the contest."""

    low: float
    high: float
    """Bytes counted over bytes of text."""
    what: str


BYTE_BUGS = (
    ByteBug(1.035, 1.048, "byte tokens counted as three bytes each (PR #1289, +4.13 %)"),
    ByteBug(1.080, 1.099, "marks of the CaseOps transform counted as text (PR #2138, +8.95 %)"),
    ByteBug(1.155, 1.185, "the leading space counted twice (PR #1734 and #1804, +16.7 to 17.5 %)"),
    ByteBug(1.200, 1.300, "each space encoded as three byte tokens (issue #897, about +25 %)"),
)

_SENTENCEPIECE = re.compile(r"(?:sp|fineweb_)(1024|4096|8192)(?!\d)")


def named(texts: str) -> Split | None:
    """The split that paths and names of a log speak of: `fineweb10B_sp1024`, `..._caseops_...`."""
    lower = texts.lower()
    if "caseops" in lower and re.search(r"caseops(?:_enabled)?\W{1,2}false", lower) is None:
        return PUBLISHED[3]
    sizes = {match[1] for match in _SENTENCEPIECE.finditer(lower)}
    if len(sizes) != 1:
        return None
    (size,) = sizes
    return next(split for split in PUBLISHED if split.name == f"sp{size}")


def by_tokens(tokens: float, sequence_length: int) -> Split | None:
    """The split or export with this many tokens; windows of another length cut another tail."""
    slack = max(sequence_length, 2_048)
    near = [s for s in (*PUBLISHED, *OTHER_EXPORTS) if abs(s.tokens - tokens) <= slack]
    return min(near, key=lambda split: abs(split.tokens - tokens), default=None)


def bug(ratio: float) -> str:
    """The known bug that counts `ratio` times the bytes of the text; empty if none fits."""
    return next((b.what for b in BYTE_BUGS if b.low <= ratio <= b.high), "")
