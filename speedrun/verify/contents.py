"""Is the validation text, or a part of it, in the counted files: as text, or as tokens?

What is compressed, encoded or packed in an array is unpacked first, as far as the usual ways of
hiding go. A text that is enciphered is not found here; `memory.memorisation` asks for what it does.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bz2
import io
import lzma
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from speedrun.data.dataset import Dataset
from speedrun.errors import FormatError
from speedrun.pack.container import read_container
from speedrun.verify.rules import Rule
from speedrun.verify.verdict import RuleResult

Bytes = NDArray[np.uint8]

WINDOW = 32
"""Bytes of text compared at once; every copy of `RUN_BYTES` holds an aligned one."""
RUN_BYTES = 160
"""Shorter runs are idioms: an import line, a licence's first words."""
RUN_TOKENS = 64
TOTAL_BYTES = 640
"""Text in all that makes it more than a coincidence."""
UNPACKED_LIMIT_BYTES = 1 << 28
MAX_DEPTH = 4
_MIN_BLOB = 256
_MAX_SOURCE = 1 << 22


def contents(folder: Path, dataset: Dataset) -> RuleResult:
    """No run of the validation text is stored in the counted files, and nothing is pickled."""
    rule = Rule("contents")
    tokens = np.ascontiguousarray(dataset.val_tokens(), dtype=np.uint16)
    haystacks = _Haystacks()
    haystacks.add((folder / "train_gpt.py").read_bytes())
    with suppress(FormatError):  # `container` reports it
        meta, arrays = read_container((folder / "model.srz").read_bytes())
        haystacks.add(repr(meta).encode())
        for array in arrays.values():
            haystacks.add(array.tobytes())
            if array.dtype.kind in "iu":
                haystacks.tokens.append(array.reshape(-1).astype(np.uint16))
            elif array.dtype.kind == "f":
                whole = np.nan_to_num(array.reshape(-1).astype(np.float64), posinf=0, neginf=0)
                haystacks.tokens.append(np.clip(whole, 0, 65_535).astype(np.uint16))
    if any(_is_pickle(blob) for blob in haystacks.blobs):
        said = "an array or a packed file is a pickle: loading it runs whatever it says"
        return rule.result(False, "a pickle", "none", evidence=said, fix="store plain arrays")
    text = np.frombuffer(validation_text(dataset), np.uint8)
    found_text = [run for blob in haystacks.blobs for run in _common_runs(blob, text, RUN_BYTES)]
    stream = tokens.view(np.uint8)
    found_tokens = [
        run
        for ids in haystacks.tokens
        for run in _common_runs(ids.view(np.uint8), stream, 2 * RUN_TOKENS)
    ]
    total = sum(length for length, _ in found_text) + sum(length for length, _ in found_tokens)
    evidence = "cut off: " + haystacks.cut if haystacks.cut else ""
    if total >= TOTAL_BYTES:
        length, start = max(found_text + found_tokens)
        what = "bytes of text" if found_text else "bytes of token ids"
        evidence = f"longest run: {length:,} {what} from place {start:,} of the split"
    elif haystacks.cut:
        return rule.undecided(evidence, "hand in files that unpack to less")
    return rule.result(
        total < TOTAL_BYTES,
        f"{total:,} bytes of the split found",
        f"below {TOTAL_BYTES:,}",
        evidence=evidence,
        fix="keep the validation text out of the artifact",
    )


def validation_text(dataset: Dataset) -> bytes:
    """The raw text where the data set has it, else what its tokens decode to."""
    if dataset.manifest is None:
        return dataset.tokenizer().decode(dataset.val_tokens().tolist()).encode()
    shards = [shard.raw for shard in dataset.manifest.shards if shard.raw is not None]
    return b"".join((dataset.folder / entry.file).read_bytes() for entry in shards)


def _is_pickle(data: Bytes) -> bool:
    """Whether bytes are a pickle from the first to the last; it is read, never loaded."""
    if len(data) < 3 or data[0] != 0x80 or not 2 <= data[1] <= 5:
        return False
    try:
        last = max(place or 0 for _, _, place in pickletools.genops(data.tobytes()))
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError):
        return False
    return last >= len(data) - 8


class _Haystacks:
    """Everything that can be unpacked from some bytes, within bounds."""

    def __init__(self) -> None:
        self.blobs: list[Bytes] = []
        self.tokens: list[NDArray[np.uint16]] = []
        self.cut = ""
        self._left = UNPACKED_LIMIT_BYTES

    def add(self, data: bytes, depth: int = 0) -> None:
        """Take bytes, and what they unpack to."""
        if len(data) < WINDOW:
            return
        if len(data) > self._left:
            self.cut = f"the counted files unpack to more than {UNPACKED_LIMIT_BYTES:,} bytes"
            return
        self._left -= len(data)
        self.blobs.append(np.frombuffer(data, np.uint8))
        if depth < MAX_DEPTH:
            for inner in self._unpack(data):
                self.add(inner, depth + 1)

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        limit = self._left
        if data[:4] == b"PK\x03\x04" or b"PK\x05\x06" in data[-70_000:]:
            yield from _members(data, limit)
        for unpack in (_zlib, _lzma, _bz2, _zstd, _brotli):
            if (inner := unpack(data, limit)) is not None:
                yield inner
        if len(data) > _MAX_SOURCE:
            return
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            for node in ast.walk(ast.parse(data)):
                if isinstance(node, ast.Constant) and isinstance(node.value, bytes | str):
                    value = node.value
                    text = value.encode("utf-8", "replace") if isinstance(value, str) else value
                    if len(text) >= _MIN_BLOB:
                        yield text
                        for decode in (base64.b64decode, base64.b85decode, base64.a85decode):
                            with suppress(ValueError, binascii.Error):
                                yield decode(text)
                        with suppress(ValueError):
                            yield bytes.fromhex(text.decode("ascii", "replace"))


def _members(data: bytes, limit: int) -> Iterator[bytes]:
    """Files of a zip archive; what is broken or locked in it is passed over."""
    broken = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError)
    with suppress(*broken), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist()[:1_000]:
            with suppress(*broken, zlib.error, EOFError), archive.open(entry) as member:
                yield member.read(limit + 1)


def _zlib(data: bytes, limit: int) -> bytes | None:
    for bits in (47, -15):  # zlib or gzip by its head, or none
        if bits > 0 and data[:1] not in (b"\x78", b"\x1f"):
            continue
        with suppress(zlib.error):
            inner = zlib.decompressobj(bits).decompress(data, limit + 1)
            if len(inner) >= _MIN_BLOB:
                return inner
    return None


def _lzma(data: bytes, limit: int) -> bytes | None:
    if data[:6] == b"\xfd7zXZ\x00" or data[:1] == b"\x5d":
        with suppress(lzma.LZMAError, EOFError):
            return lzma.LZMADecompressor(memlimit=1 << 28).decompress(data, limit + 1)
    return None


def _bz2(data: bytes, limit: int) -> bytes | None:
    if data[:3] == b"BZh":
        with suppress(OSError, ValueError, EOFError):
            return bz2.BZ2Decompressor().decompress(data, limit + 1)
    return None


def _zstd(data: bytes, limit: int) -> bytes | None:
    if data[:4] == b"\x28\xb5\x2f\xfd":
        with suppress(zstandard.ZstdError):
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(data)
            return bytes(reader.read(limit + 1))
    return None


def _brotli(data: bytes, limit: int) -> bytes | None:
    import brotli

    decompressor = brotli.Decompressor()
    with suppress(brotli.error):
        inner = bytes(decompressor.process(data, output_buffer_limit=limit + 1))
        if len(inner) >= _MIN_BLOB:
            return inner
    return None


_MIX = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 1 << 22
"""Places hashed at a time; hashes take eight bytes each."""


def _hashes(data: Bytes) -> NDArray[np.uint64]:
    """A hash of the `WINDOW` bytes from each place."""
    count = len(data) - WINDOW + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    words = np.lib.stride_tricks.sliding_window_view(data, 8)
    each = np.empty(len(words), np.uint64)
    for shift in range(8):  # views of whole words are copied eight times as fast
        part = np.ascontiguousarray(words[shift::8])
        each[shift::8] = part.view(np.uint64)[:, 0]
    mixed = each[:count]
    for column in range(8, WINDOW, 8):
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX ^ each[column : column + count]
    return mixed


def _common_runs(hay: Bytes, text: Bytes, minimum: int) -> list[tuple[int, int]]:
    """Runs of at least `minimum` bytes that both hold: (length, place in the text), disjoint."""
    if len(text) < minimum or len(hay) < minimum:
        return []
    step = WINDOW // 2
    pieces = range(0, len(text), _PIECE)
    known = np.concatenate([_hashes(text[b : b + _PIECE + WINDOW - 1])[::step] for b in pieces])
    order = np.argsort(known, kind="stable")
    runs: list[tuple[int, int]] = []
    last_end = 0
    for begin in range(0, len(hay), _PIECE):
        found = _hashes(hay[begin : begin + _PIECE + WINDOW - 1])
        at = np.minimum(np.searchsorted(known, found, sorter=order), len(known) - 1)
        for place in np.flatnonzero(known[order[at]] == found).tolist():
            here, there = begin + place, int(order[at[place]]) * step
            if here < last_end:
                continue
            start, stop = _extend(hay, text, here, there)
            # A run of one byte or two is padding, wherever it comes from.
            if stop - start >= minimum and len(np.unique(hay[start:stop])) > 8:
                runs.append((stop - start, there - (here - start)))
                last_end = stop
    return runs


def _extend(hay: Bytes, text: Bytes, here: int, there: int) -> tuple[int, int]:
    """The longest common run around two places, as places of `hay`."""
    room = min(len(hay) - here, len(text) - there)
    differs = np.flatnonzero(hay[here : here + room] != text[there : there + room])
    stop = here + (int(differs[0]) if differs.size else room)
    room = min(here, there)
    differs = np.flatnonzero(hay[here - room : here][::-1] != text[there - room : there][::-1])
    start = here - (int(differs[0]) if differs.size else room)
    return start, stop
