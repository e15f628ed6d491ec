"""The `model.srz` container: named arrays in compressed sections, and one JSON object.

The layout is in FORMAT.md; what the arrays mean is left to `pack.weights`.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedrun.errors import FormatError, PackError
from speedrun.pack import ans, codecs

MAGIC = b"\x89SRZ\r\n\x1a\n"  # as PNG's: text-mode transfers and truncation to 7 bits break it
VERSION = 1
RAW_LIMIT_BYTES = 1 << 30
"""What `read_container` is willing to decompress in all, unless told otherwise."""
_HEAD = struct.Struct("<8sHII")
_HEADER_LIMIT_BYTES = 1 << 24
_PLAIN_BYTES = 256  # shorter headers stay readable in a hex dump
_DIGEST_BYTES = 32
_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Section:
    """Arrays of one item size that are compressed together, in this order."""

    arrays: dict[str, Array]
    codec: str = "zstd"


@dataclass(frozen=True, slots=True)
class Header:
    """The checked table of contents; nothing is decompressed yet."""

    arrays: list[tuple[str, str, tuple[int, ...], int]]
    """Name, dtype, shape, number of the section."""
    sections: list[tuple[str, int, int]]
    """Codec, bytes before compression, bytes as stored."""
    meta: dict[str, Any]
    body: int
    """Where the first section starts."""


def write_container(sections: Sequence[Section], meta: dict[str, Any]) -> bytes:
    """Pack arrays and a JSON object into bytes; the same input gives the same bytes.

    Raises
        PackError: two arrays of one name, a dtype without a place in the format, mixed item sizes
            in a section, or a `meta` that is not JSON.
    """
    arrays: list[list[Any]] = []
    table: list[list[Any]] = []
    stored: list[bytes] = []
    for section in sections:
        parts = {name: np.asarray(array) for name, array in section.arrays.items()}
        widths = {part.itemsize for part in parts.values()}
        if len(widths) != 1:
            raise PackError(f"section of {list(parts)} has item sizes {sorted(widths)}, need one")
        for name, part in parts.items():
            dtype = part.dtype.kind.replace("?", "b") + str(part.itemsize)
            if dtype not in _DTYPES:
                raise PackError(f"array {name!r} is {part.dtype}, the format has {_DTYPES}")
            arrays.append([name, dtype, list(part.shape), len(table)])
            parts[name] = part.astype(part.dtype.newbyteorder("<"), copy=False)
        raw = _planes(b"".join(part.tobytes() for part in parts.values()), widths.pop())
        shapes = [_matrix(part.shape) for part in parts.values() if part.itemsize == 1]
        codec, data = codecs.compress(raw, section.codec, shapes)
        table.append([codec, len(raw), len(data)])
        stored.append(data)
    try:
        header = _canonical({"arrays": arrays, "meta": meta, "sections": table})
        _check_header(json.loads(header), 0)
    except (TypeError, ValueError, FormatError) as error:
        raise PackError(f"cannot be packed: {error}") from error
    packed = min(header, ans.zstd(header), key=len) if len(header) > _PLAIN_BYTES else header
    head = _HEAD.pack(MAGIC, VERSION, len(packed), len(header))
    body = b"".join((head, packed, *stored))
    return body + hashlib.sha256(body).digest()


def read_container(
    data: bytes, *, raw_limit_bytes: int = RAW_LIMIT_BYTES
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Unpack bytes of any origin: (meta, arrays by name). The arrays are writable and independent.

    Raises
        FormatError: whatever is wrong with the bytes; no other exception leaves.
    """
    header = read_header(data)
    if (total := sum(raw for _, raw, _ in header.sections)) > raw_limit_bytes:
        raise FormatError(f"would unpack to {total:,} bytes, the limit is {raw_limit_bytes:,}")
    arrays: dict[str, Array] = {}
    start = header.body
    for number, (codec, raw_bytes, stored_bytes) in enumerate(header.sections):
        members = [entry for entry in header.arrays if entry[3] == number]
        width = int(members[0][1][1])
        shapes = [_matrix(shape) for _, _, shape, _ in members] if width == 1 else []
        stored = data[start : start + stored_bytes]
        start += stored_bytes
        raw = _unplanes(codecs.decompress(stored, codec, raw_bytes, shapes), width)
        offset = 0
        for name, dtype, shape, _ in members:
            part = np.frombuffer(raw, "<" + dtype, math.prod(shape), offset).reshape(shape)
            if dtype == "b1" and part.view(np.uint8).max(initial=0) > 1:
                raise FormatError(f"array {name!r} is boolean and holds bytes above 1")
            offset += part.nbytes
            arrays[name] = part.astype(dtype)
    return header.meta, arrays


def read_header(data: bytes) -> Header:
    """Check everything that can be checked without decompressing a section.

    Raises
        FormatError: not a container, another version, damaged, or a table that contradicts itself.
    """
    if data[:8] != MAGIC:
        raise FormatError(f"not a model.srz: starts with {data[:8]!r}, expected {MAGIC!r}")
    if len(data) < _HEAD.size + _DIGEST_BYTES:
        raise FormatError(f"model.srz of {len(data)} bytes is cut short; copy it again")
    _, version, stored_bytes, header_bytes = _HEAD.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"model.srz has version {version}, this reader knows {VERSION}; update")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise FormatError("model.srz is damaged: its SHA-256 differs from the one it ends with")
    body = _HEAD.size + stored_bytes
    if max(stored_bytes, header_bytes) > _HEADER_LIMIT_BYTES or body > len(data) - _DIGEST_BYTES:
        raise FormatError(f"header of {stored_bytes:,} ({header_bytes:,}) bytes does not fit")
    text = data[_HEAD.size : body]
    if stored_bytes != header_bytes:
        text = ans.unzstd(text, header_bytes)
    try:
        values = json.loads(text)
        if _canonical(values) != text:
            raise FormatError("header is not canonical JSON")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"header is not canonical JSON: {error}") from error
    header = _check_header(values, body)
    end = body + sum(stored for _, _, stored in header.sections) + _DIGEST_BYTES
    if end != len(data):
        raise FormatError(f"sections end at byte {end:,}, the file at {len(data):,}")
    return header


def _check_header(values: Any, body: int) -> Header:
    """Believe a parsed header only after every claim in it has been compared with the others."""
    match values:
        case {"arrays": list(arrays), "meta": dict(meta), "sections": list(sections)}:
            pass
        case _:
            raise FormatError("header needs arrays, meta and sections")
    if len(values) != 3:
        raise FormatError(f"header has keys {sorted(values)}, expected arrays, meta, sections")
    for entry in sections:
        match entry:
            case [str(), raw, stored] if _is_count(raw) and _is_count(stored):
                pass
            case _:
                raise FormatError(f"section {_show(entry)}: need [codec, bytes, stored bytes]")
    expected = [0] * len(sections)
    widths: list[set[str]] = [set() for _ in sections]
    names, last = set(), -1
    for entry in arrays:
        match entry:
            case [str(name), str(dtype), list(shape), number] if (
                0 < len(name) <= 256
                and dtype in _DTYPES
                and len(shape) <= 8
                and all(map(_is_count, shape))
                and _is_count(number)
            ):
                pass
            case _:
                raise FormatError(f"array {_show(entry)}: need [name, dtype, shape, section]")
        if name in names:
            raise FormatError(f"array {name!r} is listed twice")
        if not last <= number <= last + 1 or number >= len(sections):
            raise FormatError(f"array {name!r} is in section {number}, out of order")
        names.add(name)
        last = number
        widths[number].add(dtype[1])
        expected[number] += math.prod(shape) * int(dtype[1])
    for number, (_, raw, _) in enumerate(sections):
        if len(widths[number]) != 1 or raw != expected[number]:
            raise FormatError(
                f"section {number} has {raw:,} bytes, its arrays {expected[number]:,} "
                f"in item sizes {sorted(widths[number])}"
            )
    return Header(
        [(n, d, tuple(s), i) for n, d, s, i in arrays],
        [(c, r, s) for c, r, s in sections],
        meta,
        body,
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _show(value: object) -> str:
    return repr(value)[:80]


def _canonical(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, cols): the last axis are columns; (0, 0) without elements."""
    size = math.prod(shape)
    return (size // shape[-1], shape[-1]) if size and shape else (size, size)


def _planes(raw: bytes, width: int) -> bytes:
    return np.frombuffer(raw, np.uint8).reshape(-1, width).T.tobytes()


def _unplanes(raw: bytes, width: int) -> bytes:
    return np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()
