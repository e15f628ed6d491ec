"""The byte oracle: bpb is divided by bytes of the original text, and tables must agree with it.

A table says how many bytes a token adds; tables have been wrong in public entries by up to 20 %. So
the validation text itself is kept beside its shard, and each count by a table is held against it.
"""

from __future__ import annotations

import mmap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedrun.errors import TokenizerError

_TOKENS_AT_ONCE = 1 << 22
"""Some MB of arrays, however long the stream."""


@dataclass(frozen=True, slots=True)
class ByteTable:
    """Bytes of each token of a tokenizer.

    Shapes
        base      (vocab_size,)  uint16, bytes of the piece without its first space, if droppable
        lead      (vocab_size,)  bool, the piece has such a space
        boundary  (vocab_size,)  bool, no text: after such a token the space is dropped
    """

    base: NDArray[np.uint16]
    lead: NDArray[np.bool_]
    boundary: NDArray[np.bool_]

    def count(self, tokens: NDArray[Any], previous: NDArray[Any]) -> NDArray[np.uint16]:
        """Bytes that each token adds after its predecessor.

        Shapes
            tokens, previous  (n,)  any integer dtype
            result            (n,)  uint16

        Raises
            TokenizerError: an id is outside the table.
        """
        for ids in (tokens, previous):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.base.size:
                raise TokenizerError(
                    f"token ids run from {ids.min():,} to {ids.max():,}, the tokenizer has "
                    f"{self.base.size:,} pieces; it is not the one that made these shards"
                )
        spaces = self.lead[tokens] & ~self.boundary[previous]
        return np.asarray(self.base[tokens] + spaces, dtype=np.uint16)

    def total(self, stream: NDArray[Any]) -> int:
        """Bytes of all targets of a stream: every token but the first."""
        step = _TOKENS_AT_ONCE
        return sum(
            int(self.count(stream[start + 1 :][:step], stream[start:-1][:step]).sum())
            for start in range(0, stream.size - 1, step)
        )


@dataclass(frozen=True, slots=True)
class RawText:
    """The original documents behind a token stream, as they were before any tokenizer."""

    data: bytes | mmap.mmap
    """All documents, UTF-8, one after the other."""
    document_bytes: Sequence[int]
    """Length of each document."""
    document_ids: Sequence[str]
    """Name of each document, for messages."""

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """Each document's name and bytes.

        Raises
            TokenizerError: the lengths do not add up to the text.
        """
        if sum(self.document_bytes) != len(self.data):
            raise TokenizerError(
                f"raw text has {len(self.data):,} bytes, its documents "
                f"{sum(self.document_bytes):,}; prepare the dataset again"
            )
        start = 0
        for name, size in zip(self.document_ids, self.document_bytes, strict=True):
            yield name, self.data[start : start + size]
            start += size


@dataclass(frozen=True, slots=True)
class Accounting:
    """How a tokenizer's count compares to the text."""

    raw_bytes: int
    """Bytes of the original text: the denominator of bpb."""
    token_bytes: int
    """Bytes by the tokenizer's table."""
    lossless: bool
    """Decoding gives back the text, so the two are equal."""


def check_accounting(
    tokens: NDArray[Any], table: ByteTable, raw: RawText, *, bos_id: int, lossless: bool
) -> Accounting:
    """Hold a table's count against the text, document by document.

    A lossless tokenizer must agree to the byte. A lossy one may count less (collapsed white space,
    unknown characters), and more only as far as NFKC makes a document longer: its normaliser may
    turn one character into several, a wrong table does so everywhere.

    Shapes
        tokens  (n,)  documents, each starting with BOS

    Raises
        TokenizerError: other documents than the text has, or one whose bytes cannot be right; named
            with the bytes found and expected.
    """
    starts = np.flatnonzero(tokens == bos_id)
    if starts.size != len(raw.document_ids) or not starts.size or starts[0] != 0:
        raise TokenizerError(
            f"{starts.size:,} documents in the tokens (BOS = {bos_id}), {len(raw.document_ids):,} "
            "in the raw text; shard, text and tokenizer do not belong together"
        )
    found_bytes = _count_documents(tokens, table, starts)
    for (name, text), found in zip(raw.documents(), found_bytes.tolist(), strict=True):
        limit = len(text)
        if not lossless and found > limit:
            limit = max(limit, len(unicodedata.normalize("NFKC", text.decode()).encode()))
        if found > limit or (lossless and found != limit):
            raise TokenizerError(
                f"document {name!r}: the byte table counts {found:,} bytes, the text has "
                f"{len(text):,}{'' if lossless else f' ({limit:,} after NFKC)'}; "
                "the table or the tokenizer is wrong for these shards"
            )
    return Accounting(len(raw.data), int(found_bytes.sum()), lossless)


def _count_documents(
    tokens: NDArray[Any], table: ByteTable, starts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Bytes of each document, some MB at a time."""
    found, first = [], 0
    while first < starts.size:
        last = max(int(np.searchsorted(starts, starts[first] + _TOKENS_AT_ONCE)), first + 1)
        end = tokens.size if last >= starts.size else int(starts[last])
        part = tokens[starts[first] : end]
        counts = np.concatenate([[np.uint16(0)], table.count(part[1:], part[:-1])])
        found.append(np.add.reduceat(counts, starts[first:last] - starts[first], dtype=np.int64))
        first = last
    return np.concatenate(found)
