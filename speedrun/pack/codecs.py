"""Compressors of sections by name; each gives back the promised bytes or raises FormatError."""

from __future__ import annotations

import lzma

import zstandard

from speedrun.errors import FormatError, PackError
from speedrun.pack import ans

CODECS = ("raw", "zstd", "lzma", "brotli", "ans")
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 26, "lc": 0, "lp": 0, "pb": 0}]


def compress(raw: bytes, codec: str, shapes: ans.Shapes = ()) -> tuple[str, bytes]:
    """Compress with `codec`, or with each in turn for "best"; say which codec was taken.

    `shapes` are the matrices that `raw` consists of, if it holds one byte per weight; without them
    "ans" has nothing to model and zstd takes its place. Bytes that do not shrink stay "raw".
    "probe" is a quick look whether anything but "ans" is worth a try.
    """
    if codec == "probe":
        quick = zstandard.ZstdCompressor(level=3).compress(raw)
        return min(("zstd", quick), ("ans", ans.encode(raw, shapes)), key=lambda pair: len(pair[1]))
    if codec not in (*CODECS, "best"):
        raise PackError(f"unknown codec {codec!r}; choose {', '.join(CODECS)} or best")
    wanted: tuple[str, ...] = CODECS if codec == "best" else ("raw", codec)
    if not shapes:
        wanted = tuple(dict.fromkeys("zstd" if name == "ans" else name for name in wanted))
    stored = [(name, _compress(raw, name, shapes)) for name in wanted]
    return min(stored, key=lambda pair: len(pair[1]))


def decompress(data: bytes, codec: str, raw_bytes: int, shapes: ans.Shapes = ()) -> bytes:
    """Undo `compress`; `raw_bytes` is what the file promises and bounds what is reserved.

    Raises
        FormatError: the codec is unknown, the data broken, or its length another.
    """
    if codec == "raw":
        raw = data
    elif codec == "zstd":
        raw = ans.unzstd(data, raw_bytes)
    elif codec == "lzma":
        raw = _unlzma(data, raw_bytes)
    elif codec == "brotli":
        raw = _unbrotli(data, raw_bytes)
    elif codec == "ans" and sum(rows * cols for rows, cols in shapes) == raw_bytes:
        raw = ans.decode(data, shapes)
    else:
        raise FormatError(f"no codec {codec!r} for this section; known: {', '.join(CODECS)}")
    if len(raw) != raw_bytes:
        raise FormatError(f"{codec} section of {len(raw):,} bytes, the file promises {raw_bytes:,}")
    return raw


def _compress(raw: bytes, codec: str, shapes: ans.Shapes) -> bytes:
    if codec == "zstd":
        return ans.zstd(raw)
    if codec == "lzma":
        return lzma.compress(raw, lzma.FORMAT_RAW, filters=_LZMA)
    if codec == "brotli":
        import brotli

        return bytes(brotli.compress(raw, quality=11, lgwin=24))
    return ans.encode(raw, shapes) if codec == "ans" else raw


def _unlzma(data: bytes, raw_bytes: int) -> bytes:
    # A decoder reserves its whole dictionary, and needs no more than there is to look back on.
    window = min(max(raw_bytes, 4_096), 1 << 26)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": window}]
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    try:
        # One byte more than promised is enough to see that there are too many.
        raw = decoder.decompress(data, raw_bytes + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise FormatError(f"broken lzma section: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise FormatError(f"lzma section does not end after {raw_bytes:,} bytes")
    return raw


def _unbrotli(data: bytes, raw_bytes: int) -> bytes:
    try:
        import brotli
    except ModuleNotFoundError as error:
        raise FormatError("a section needs brotli to be read: pip install brotli") from error
    decoder, parts, found = brotli.Decompressor(), [], 0
    try:
        while found <= raw_bytes and not decoder.is_finished():
            part = decoder.process(data, output_buffer_limit=raw_bytes + 1 - found)
            if not part and not data:
                break
            data, found = b"", found + len(part)
            parts.append(part)
    except brotli.error as error:
        raise FormatError(f"broken brotli section: {error}") from error
    if not decoder.is_finished():
        raise FormatError(f"brotli section does not end after {raw_bytes:,} bytes")
    return b"".join(parts)
