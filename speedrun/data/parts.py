"""One block of documents after encoding, as a file: the unit that survives a killed build.

    8 bytes   length of the header
    header    JSON: documents, tokens, bytes of each section, what was left out and why
    keys      (documents,) uint64, first 8 bytes of the SHA-256 of the id: order and split
    digests   (documents,) uint64, the same of the text: duplicates
    tokens    (documents,) uint32, tokens of each document
    bytes     (documents,) uint32, bytes of each text
    ids       JSON list, zstd
    stream    uint16, all tokens, document by document
    texts     all texts, zstd

Numbers are little-endian. A part is written in one step, so it is whole or it is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from speedrun.data.filters import Filters
from speedrun.data.shards import Tokens
from speedrun.data.sources import Block, RecordError, parse
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import DataError
from speedrun.files import write_atomic

_META = np.dtype([("key", "<u8"), ("digest", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
_PACKING_LEVEL = 1  # half the size at 400 MB/s; only validation texts are ever unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How records become documents and documents tokens."""

    filters: Filters = field(default_factory=Filters)
    with_eos: bool = False
    text_key: str = "text"
    id_key: str = "id"
    skip_unreadable: bool = False
    """Count records without a readable text instead of stopping at the first."""


def first_bytes(content: bytes) -> int:
    """First 8 bytes of the SHA-256, as a number: sorts as the hash does."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def write_part(path: Path, block: Block, tokenizer: Tokenizer, encoding: Encoding) -> int:
    """Parse, filter and encode a block and write it; returns the bytes of text that were read.

    Raises
        DataError: a record has no readable text.
        OutputError: the file cannot be written.
    """
    ids: list[str] = []
    texts: list[str] = []
    raw: list[bytes] = []
    dropped: Counter[str] = Counter()
    read_bytes = 0
    for record in block:
        try:
            document_id, text = parse(record, text_key=encoding.text_key, id_key=encoding.id_key)
        except RecordError as error:
            if not encoding.skip_unreadable:
                raise DataError(f"{record[0]}: {error}; repair it or let it be skipped") from error
            dropped["unreadable"] += 1
            continue
        encoded = text.encode()
        read_bytes += len(encoded)
        if reason := encoding.filters.reason(text, encoded):
            dropped[reason] += 1
            continue
        ids.append(document_id)
        texts.append(text)
        raw.append(encoded)
    streams = tokenizer.encode_documents(texts)
    if encoding.with_eos:
        end = np.array([tokenizer.eos_id], dtype=np.uint16)
        streams = [np.concatenate([stream, end]) for stream in streams]
    write_atomic(path, _pack(ids, raw, streams, len(block), dict(dropped)))
    return read_bytes


def _pack(
    ids: list[str],
    raw: list[bytes],
    streams: Sequence[Tokens],
    num_records: int,
    dropped: dict[str, int],
) -> bytes:
    meta = np.zeros(len(ids), dtype=_META)
    meta["key"] = [first_bytes(each.encode()) for each in ids]
    meta["digest"] = [first_bytes(each) for each in raw]
    meta["tokens"] = [stream.size for stream in streams]
    meta["bytes"] = [len(each) for each in raw]
    packer = zstandard.ZstdCompressor(level=_PACKING_LEVEL)
    sections = [
        *(np.ascontiguousarray(meta[name]).tobytes() for name in meta.dtype.names or ()),
        packer.compress(json.dumps(ids).encode()),
        b"".join(stream.astype("<u2").tobytes() for stream in streams),
        packer.compress(b"".join(raw)),
    ]
    header = {
        "documents": len(ids),
        "records": num_records,
        "dropped": dict(sorted(dropped.items())),
        "sections": [len(section) for section in sections],
    }
    described = json.dumps(header).encode()
    return b"".join((len(described).to_bytes(8, "little"), described, *sections))


class Part:
    """Reads a part piece by piece; the file stays open until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        length = int.from_bytes(self._read(0, 8), "little")
        self.header: dict[str, Any] = json.loads(self._read(8, length))
        sizes = self.header["sections"]
        self._starts = np.cumsum([8 + length, *sizes]).tolist()
        self.documents = int(self.header["documents"])
        """Documents in it."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def column(self, name: str) -> NDArray[Any]:
        """`key`, `digest`, `tokens` or `bytes` of every document."""
        names = list(_META.names or ())
        return np.frombuffer(self._section(names.index(name)), dtype=_META[name])

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the documents."""
        return list(json.loads(zstandard.ZstdDecompressor().decompress(self._section(4))))

    @cached_property
    def token_starts(self) -> NDArray[np.int64]:
        """Where each document's tokens start in the stream."""
        return _starts(self.column("tokens"))

    @cached_property
    def byte_starts(self) -> NDArray[np.int64]:
        """Where each document's text starts."""
        return _starts(self.column("bytes"))

    def stream(self, document: int) -> bytes:
        """Tokens of one document, as they stand in a shard."""
        start, end = self.token_starts[document : document + 2].tolist()
        return self._read(self._starts[5] + 2 * start, 2 * (end - start))

    def read_streams(self) -> list[Tokens]:
        """Tokens of every document, BOS first."""
        stream = np.frombuffer(self._section(5), dtype="<u2")
        return np.split(stream, self.token_starts[1:-1]) if self.documents else []

    def read_texts(self) -> bytes:
        """All texts, one after the other; `byte_starts` says where each begins."""
        return zstandard.ZstdDecompressor().decompress(self._section(6))

    def _section(self, index: int) -> bytes:
        start, end = self._starts[index : index + 2]
        return self._read(start, end - start)

    def _read(self, start: int, size: int) -> bytes:
        found = os.pread(self._handle, size, start)
        while len(found) < size:
            more = os.pread(self._handle, size - len(found), start + len(found))
            if not more:
                raise DataError(f"{self.path} is cut; remove it and prepare again")
            found += more
        return found


def _starts(sizes: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
