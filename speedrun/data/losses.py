"""What a tokenizer loses or counts wrongly, found by asking it about a few short texts.

Each probe is one known trap. A loss is allowed (the field's tokenizers collapse white space), but
it must be told: bpb is divided by bytes of the original text, lost ones included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speedrun.data.tokenizer import Tokenizer

PROBES = {
    "runs of spaces": "a  b   c",
    "newlines": "a\n\nb\r\nc",
    "tabs": "a\tb",
    "a leading space": " a",
    "a trailing space": "a ",
    "a space between rare characters": "\U00010348 \U00010349 a",
    "capital letters": "AbC",
    "compatibility characters (NFKC)": "\ufb01\u00bd\u2122\uff21",
    "decomposed accents (NFC)": "e\u0301",
    "rare characters": "\U0001f600\U00010348\u4e9c",
    "NUL": "a\0b",
    "control characters": "a\x07\x1bb",
    "zero-width characters": "a\u200b\u00ad\ufeffb",
    "U+2581, the space sign": "a\u2581b",
    "special tokens in a text": "<s></s><unk><pad><|endoftext|><0x41>",
    "punctuation before a space": "a , b ' s n't !",
}
"""Name of a trap, and a text that falls into it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A text that does not come back, or is counted with other bytes than come back."""

    what: str
    before: bytes
    after: bytes
    counted: int
    """Bytes by the tokenizer's own table."""

    @property
    def is_miscount(self) -> bool:
        """Whether the table gives more bytes than the text ever had: a score made too good."""
        return self.counted > max(len(self.before), len(self.after))

    def __str__(self) -> str:
        return f"{self.what}: {self.before!r} becomes {self.after!r}, counted {self.counted}"


def find_losses(tokenizer: Tokenizer) -> list[Loss]:
    """Every probe that the tokenizer does not give back, or counts wrongly; none if it is exact."""
    table = tokenizer.byte_table()
    found = []
    for (what, text), tokens in zip(
        PROBES.items(), tokenizer.encode_documents(list(PROBES.values())), strict=True
    ):
        before, after = text.encode(), tokenizer.decode(tokens[1:].tolist()).encode()
        counted = table.total(tokens)
        if before != after or counted != len(before):
            found.append(Loss(what, before, after, counted))
    return found


def is_space_sound(tokenizer: Tokenizer) -> bool:
    """Whether a lone space costs one byte; without a piece of its own it is counted as three.

    Source
        Parameter Golf, issue #897: a fifth of bpb, gained by the missing piece alone.
    """
    table = tokenizer.byte_table()
    apart, joined = tokenizer.encode_documents(
        ["\U00010348 \U00010348 \U00010348", "\U00010348\U00010348\U00010348"]
    )
    return table.total(apart) - table.total(joined) <= 2


def count_decoded(tokenizer: Tokenizer, tokens: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> int:
    """Bytes that a document's tokens decode to, unknown ones as nothing: what a table must say."""
    unknown, width = tokenizer.unknown_bytes
    decoded = len(tokenizer.decode(tokens[1:].tolist()).encode())
    return decoded - width * int((tokens[1:] == unknown).sum())
