"""Range coding of int8 codes with tables chosen by row and column; the layout is in FORMAT.md.

Rows of weights are bell curves of different widths, and so are columns. Order-0 coders pay for the
mixture; here each weight is coded with the table of its own width. Only numpy and zstandard are
needed: the lanes are numpy's vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

from speedrun.errors import FormatError

_BITS = 14  # frequencies sum to 2^14: the decoder's tables stay inside a core's cache
_TOTAL = 1 << _BITS
_LOWER = 1 << 16  # states live in [2^16, 2^32) and move in words of 16 bits
_STEPS = 16_384  # symbols per lane; a lane costs about two bytes
_MAX_LEVEL = 160
_SHARES = np.array([0] + [round(2 ** (v / 8)) for v in range(_MAX_LEVEL)], np.int64)
_BELOW, _ABOVE = 6, 8  # octaves of mean magnitude on either side of 1 that classes tell apart
# (whether columns have classes, classes an octave, least symbols of a table). Column classes pay
# where columns differ, as after a norm with gains; fine classes where rows are long; and a table
# costs about 50 bytes. Above so many symbols the first two will do.
_PLANS = (
    (True, 3, 4_096),
    (True, 6, 4_096),
    (True, 2, 1_024),
    (True, 3, 512),
    (False, 3, 512),
    (True, 3, 128),
    (False, 3, 128),
    (False, 3, 1 << 40),  # one table for all
)
_LARGE = 1 << 22

Bytes = NDArray[np.uint8]
Shapes = Sequence[tuple[int, int]]


def encode(raw: bytes, shapes: Shapes) -> bytes:
    """Code the bytes of int8 matrices that lie one after another.

    Shapes
        raw     bytes, row by row, one matrix after the other
        shapes  (rows, cols) of each matrix; they cover `raw` exactly
    """
    symbols = np.frombuffer(raw, np.uint8) ^ np.uint8(128)
    if not symbols.size:
        return b""
    some = _PLANS if symbols.size < _LARGE else _PLANS[:2]
    plans = [_plan(symbols, shapes, *plan) for plan in some]
    _, side, tables, contexts = min(plans, key=lambda plan: plan[0])
    freqs = _frequencies(tables)
    starts = np.cumsum(freqs, axis=1) - freqs
    freqs, starts = freqs.ravel().astype(np.uint64), starts.ravel().astype(np.uint64)
    lanes = -(-symbols.size // _STEPS)
    states = np.full(lanes, _LOWER, np.uint64)
    words: list[NDArray[np.uint16]] = []
    shift, low = np.uint64(32 - _BITS), np.uint64(_LOWER - 1)
    for start in reversed(range(0, symbols.size, lanes)):
        part = slice(start, start + lanes)
        cell = contexts[part].astype(np.int64) << 8 | symbols[part]
        freq, x = freqs[cell], states[: cell.size]
        full = x >= freq << shift
        words.append((x[full] & low).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        high, rest = np.divmod(x, freq)
        states[: cell.size] = (high << np.uint64(_BITS)) + rest + starts[cell]
    head = struct.pack("<BI", len(tables), len(side))
    return b"".join(
        (
            head,
            side,
            states.astype("<u4").tobytes(),
            np.concatenate(words[::-1]).astype("<u2").tobytes(),
        )
    )


def decode(data: bytes, shapes: Shapes) -> bytes:
    """Undo `encode`.

    Raises
        FormatError: lengths, classes, tables or states contradict each other.
    """
    size = sum(rows * cols for rows, cols in shapes)
    if not size and not data:
        return b""
    lanes = -(-size // _STEPS)
    num_tables, side_bytes = struct.unpack_from("<BI", data) if len(data) >= 5 else (0, 0)
    body = 5 + side_bytes + 4 * lanes
    fits = 0 < num_tables <= _most_tables(size) and body <= len(data)
    if not size or not fits or (len(data) - body) % 2:
        raise FormatError(
            f"ans section of {len(data):,} bytes for {size:,} weights: {num_tables} tables, "
            f"{side_bytes:,} bytes of side information and {lanes:,} lanes do not fit"
        )
    raw_bytes = sum(sum(shape) for shape in shapes) + 256 * num_tables
    side = unzstd(data[5 : 5 + side_bytes], raw_bytes)
    deltas = np.frombuffer(side, np.uint8)[raw_bytes - 256 * num_tables :].reshape(-1, 256)
    levels = np.cumsum(deltas, axis=1, dtype=np.uint8)
    if levels.max() > _MAX_LEVEL or not levels.any(axis=1).all():
        raise FormatError(f"ans section: a table is empty or has levels above {_MAX_LEVEL}")
    freqs = _frequencies(levels)
    # Three lookups by (table, slot): the symbol, its frequency, and the slot's place within it.
    cells = np.repeat(np.arange(freqs.size, dtype=np.int32), freqs.ravel())
    symbol_of = (cells & 255).astype(np.uint8) ^ 128
    freq_of = freqs.ravel().astype(np.uint32)[cells]
    starts = (np.cumsum(freqs, axis=1) - freqs).ravel().astype(np.uint32)
    place_of = np.tile(np.arange(_TOTAL, dtype=np.uint32), len(freqs)) - starts[cells]
    contexts = _contexts(np.frombuffer(side, np.int8), shapes, num_tables)
    states = np.frombuffer(data, "<u4", lanes, 5 + side_bytes).astype(np.uint64)
    words = np.frombuffer(data, "<u2", offset=body).astype(np.uint64)
    result = np.empty(size, np.uint8)
    taken, bits, slots = 0, np.uint64(_BITS), np.uint64(_TOTAL - 1)
    for start in range(0, size, lanes):
        context = contexts[start : start + lanes].astype(np.int64) << _BITS
        x = states[: context.size]
        cell = context | (x & slots).astype(np.int64)
        result[start : start + lanes] = symbol_of[cell]
        x = freq_of[cell] * (x >> bits) + place_of[cell]
        (hungry,) = np.nonzero(x < _LOWER)
        food = words[taken : taken + hungry.size]
        if food.size < hungry.size:
            raise FormatError(
                f"ans section stops after {words.size:,} words, its symbols need more"
            )
        x[hungry] = x[hungry] << np.uint64(16) | food
        states[: context.size] = x
        taken += hungry.size
    if taken < words.size or (states != _LOWER).any():
        raise FormatError("ans section: words or lanes are left over after the last symbol")
    return result.tobytes()


def _most_tables(symbols: int) -> int:
    """A small file needs few tables, and must not make a reader unfold many."""
    return min(32 + symbols // 4_096, 255)


def unzstd(data: bytes, raw_bytes: int) -> bytes:
    """Decompress one zstd frame of exactly `raw_bytes` bytes; FormatError for anything else."""
    try:
        # A frame states its size itself; believing it unchecked would be the decompression bomb.
        if (found := zstandard.frame_content_size(data)) != raw_bytes:
            raise FormatError(f"zstd frame of {found:,} bytes, the file promises {raw_bytes:,}")
        return zstandard.ZstdDecompressor().decompress(data, raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"broken zstd frame: {error}") from error


def zstd(data: bytes) -> bytes:
    """Compress at level 22 into one frame without checksum; the file has its own digest."""
    # Matches below 7 bytes cost more than literals on noise-like codes: 0.05 % smaller with this.
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            22, source_size=len(data), min_match=7 if len(data) > 1 << 17 else 3
        )
    ).compress(data)


def _plan(
    symbols: Bytes, shapes: Shapes, columns: bool, fineness: int, least: int
) -> tuple[float, bytes, Bytes, Bytes]:
    """Classes and tables: (estimated bytes, side information, levels (K, 256), contexts)."""
    parts, classes, start, zero = [], [], 0, _BELOW * fineness
    ladder = range(-zero, _ABOVE * fineness + 1)
    weights = np.array([round(2**16 / 2 ** (k / fineness)) for k in ladder], np.float64)
    for rows, cols in shapes:
        codes = symbols[start : start + rows * cols].reshape(rows, cols).astype(np.int16) - 128
        start += codes.size
        magnitude = np.abs(codes).astype(np.float64)
        row = _classify(magnitude.sum(1) * 2**16, cols, fineness)
        col = np.full(cols, zero)
        if columns and rows:
            # Whole numbers below 2^53 throughout, so the order of summation cannot matter.
            col = _classify(weights[row] @ magnitude, rows, fineness)
        classes.append((row, col))
    # How many symbols each sum of a row's and a column's class has, without visiting the symbols.
    used = np.zeros(2 * len(weights) - 1, np.int64)
    for pair in classes:
        row, col = (np.bincount(part, minlength=len(weights)) for part in pair)
        used += np.convolve(row, col)
    (common,) = np.nonzero(used >= min(least, used.max()))
    first = int(common[0])
    last = min(int(common[-1]), first + _most_tables(symbols.size) - 1)
    for row, col in classes:
        parts += [(row - first + zero).astype(np.int8), (col - zero).astype(np.int8)]
    head = b"".join(part.tobytes() for part in parts)
    contexts = _contexts(np.frombuffer(head, np.int8), shapes, last - first + 1)
    counts = np.zeros((last - first + 1, 256), np.int64)
    for at in range(0, symbols.size, 1 << 20):
        part = slice(at, at + (1 << 20))
        cells = contexts[part].astype(np.int64) << 8 | symbols[part]
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    # A table that nobody uses still has to be one.
    counts[~counts.any(axis=1), 128] = 1
    levels = _levels(counts)
    deltas = np.diff(levels, axis=1, prepend=np.uint8(0))
    side = zstd(head + deltas.tobytes())
    with np.errstate(divide="ignore"):
        nats = np.where(counts > 0, np.log(_TOTAL / _frequencies(levels)), 0)
    return float((counts * nats).sum() / np.log(256)) + len(side), side, levels, contexts


def _classify(sums: NDArray[np.float64], count: int, fineness: int) -> NDArray[np.int64]:
    """Which step of the ladder the mean of sums in units of 2^-16 is nearest to."""
    ladder = range(-_BELOW * fineness, _ABOVE * fineness)
    edges = np.array([round(2**16 * 2 ** ((k + 0.5) / fineness)) for k in ladder], np.int64)
    return np.searchsorted(edges * float(count), sums, side="right")


def _contexts(classes: NDArray[np.int8], shapes: Shapes, num_tables: int) -> Bytes:
    """The table of each symbol, from the classes of rows and columns."""
    result = np.empty(sum(rows * cols for rows, cols in shapes), np.uint8)
    at = start = 0
    for rows, cols in shapes:
        row = classes[at : at + rows].astype(np.int16)
        col = classes[at + rows : at + rows + cols].astype(np.int16)
        table = np.clip(row[:, None] + col, 0, num_tables - 1)
        result[start : start + table.size] = table.ravel()
        at, start = at + rows + cols, start + table.size
    return result


def _levels(counts: NDArray[np.int64]) -> Bytes:
    """Counts (K, 256) in eighths of octaves below 2^19; rounding costs 0.0005 bits a symbol."""
    edges = [round(2 ** ((v + 0.5) / 8)) for v in range(_MAX_LEVEL - 1)]
    scaled = counts * 2**19 // counts.max(axis=1, keepdims=True)
    levels = np.searchsorted(edges, scaled, side="right") + 1
    return np.where(counts > 0, levels, 0).astype(np.uint8)


def _frequencies(levels: Bytes) -> NDArray[np.int64]:
    """Frequencies (K, 256) that sum to 2^14 in each table."""
    shares = _SHARES[levels]
    room = _TOTAL - (levels > 0).sum(axis=1, keepdims=True)
    freqs = np.where(levels > 0, np.maximum(1, shares * room // shares.sum(1, keepdims=True)), 0)
    freqs[np.arange(len(freqs)), shares.argmax(1)] += _TOTAL - freqs.sum(1)
    return freqs
