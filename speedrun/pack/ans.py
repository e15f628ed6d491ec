"""Range coding of int8 codes with tables chosen by row and column; the layout is in FORMAT.md.

Rows of weights are bell curves of different widths, and so are columns. Order-0 coders pay for the
mixture; here each weight is coded with the table of its own width. Where a matrix is small, its
tables are drawn through a few points; where columns follow from one another, as in embeddings,
what remains of them is coded. Only numpy and zstandard are needed: the lanes are numpy's vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from speedrun.errors import FormatError
from speedrun.pack.linear_prediction import MAX_PRIOR, MAX_WORK, residuals, restored, work_of
from speedrun.pack.tables import (
    BITS,
    MAX_LEVEL,
    POINTS,
    TOTAL,
    drawn,
    frequencies,
    levels_of,
    points_of,
)

_HEAD = struct.Struct("<BBI")  # tables, kind of tables, bytes of side information
_WIDTHS = (256, POINTS)  # numbers of a table, by its kind
_LOWER = 1 << 16  # states live in [2^16, 2^32) and move in words of 16 bits
_STEPS = 8_192  # symbols per lane: a lane costs about two bytes, and steps a reader's time
_FEW = 1 << 14  # symbols: of fewer, prediction and most plans win too little for their time
_GLANCE = 512, 128  # rows and columns on which prediction has to pay before all are tried
_BELOW, _ABOVE = 6, 8  # octaves of mean magnitude on either side of 1 that classes tell apart
_Plans = tuple[tuple[bool, int, int], ...]
# (whether columns have classes, classes an octave, least symbols of a table). Column classes pay
# where columns differ, as after a norm with gains; fine classes where rows are long; and a table
# costs 10 to 80 bytes. Above so many symbols the first two will do.
_PLANS: _Plans = (
    (True, 3, 4_096),
    (True, 6, 4_096),
    (True, 2, 1_024),
    (True, 3, 512),
    (False, 3, 512),
    (True, 3, 128),
    (False, 3, 128),
    (False, 3, 1 << 40),  # one table for all
)
_PLANS_OF_FEW: _Plans = ((True, 2, 1_024), (False, 3, 512), (False, 3, 1 << 40))
_TRIAL = True, 3, 512  # what a matrix is judged by, alone
_LARGE = 1 << 22

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Shapes = Sequence[tuple[int, int]]


def encode(raw: bytes, shapes: Shapes) -> bytes:
    """Code the bytes of int8 matrices that lie one after another.

    Shapes
        raw     bytes, row by row, one matrix after the other
        shapes  (rows, cols) of each matrix; they cover `raw` exactly
    """
    codes = np.frombuffer(raw, np.int8)
    if not codes.size:
        return b""
    nothing = bytes(len(shapes))
    coder = _plan(codes, shapes, nothing)
    changed, priors = _predict(codes, shapes)
    if priors != nothing:
        coder = min(coder, _plan(changed, shapes, priors), key=lambda coder: coder.size)
    symbols, contexts = coder.symbols, coder.contexts
    freqs = frequencies(coder.levels)
    starts = np.cumsum(freqs, axis=1) - freqs
    freqs, starts = freqs.ravel().astype(np.uint64), starts.ravel().astype(np.uint64)
    lanes = -(-symbols.size // _STEPS)
    states = np.full(lanes, _LOWER, np.uint64)
    words: list[NDArray[np.uint16]] = []
    shift, low = np.uint64(32 - BITS), np.uint64(_LOWER - 1)
    for start in reversed(range(0, symbols.size, lanes)):
        part = slice(start, start + lanes)
        cell = contexts[part].astype(np.int64) << 8 | symbols[part]
        freq, x = freqs[cell], states[: cell.size]
        full = x >= freq << shift
        words.append((x[full] & low).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        high, rest = np.divmod(x, freq)
        states[: cell.size] = (high << np.uint64(BITS)) + rest + starts[cell]
    return b"".join(
        (
            _HEAD.pack(len(coder.levels), _WIDTHS.index(coder.width), len(coder.side)),
            coder.side,
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
    whole = len(data) >= _HEAD.size
    num_tables, kind, side_bytes = _HEAD.unpack_from(data) if whole else (0, 0, 0)
    body = _HEAD.size + side_bytes + 4 * lanes
    fits = 0 < num_tables <= _most_tables(size) and kind < len(_WIDTHS) and body <= len(data)
    if not size or not fits or (len(data) - body) % 2:
        raise FormatError(
            f"ans section of {len(data):,} bytes for {size:,} weights: {num_tables} tables of kind "
            f"{kind}, {side_bytes:,} bytes of side information and {lanes:,} lanes do not fit"
        )
    width = _WIDTHS[kind]
    num_classes = sum(sum(shape) for shape in shapes)
    raw_bytes = num_classes + len(shapes) + width * num_tables
    side = unzstd(data[_HEAD.size : _HEAD.size + side_bytes], raw_bytes)
    priors = side[num_classes : num_classes + len(shapes)]
    work = sum(work_of(*shape) for shape, prior in zip(shapes, priors, strict=True) if prior)
    if max(priors) > MAX_PRIOR or work > MAX_WORK:
        raise FormatError(
            f"ans section: prediction of weight {max(priors)} with {work:,} multiplications, "
            f"expected at most {MAX_PRIOR} and {MAX_WORK:,}"
        )
    deltas = np.frombuffer(side, np.uint8)[raw_bytes - width * num_tables :].reshape(-1, width)
    levels = np.cumsum(deltas, axis=1, dtype=np.uint8)
    if width == POINTS:
        levels = drawn(levels)
    if levels.max() > MAX_LEVEL or not levels.any(axis=1).all():
        raise FormatError(f"ans section: a table is empty or has levels above {MAX_LEVEL}")
    freqs = frequencies(levels)
    # Three lookups by (table, slot): the symbol, its frequency, and the slot's place within it.
    cells = np.repeat(np.arange(freqs.size, dtype=np.int32), freqs.ravel())
    symbol_of = (cells & 255).astype(np.uint8) ^ 128
    freq_of = freqs.ravel().astype(np.uint32)[cells]
    starts = (np.cumsum(freqs, axis=1) - freqs).ravel().astype(np.uint32)
    place_of = np.tile(np.arange(TOTAL, dtype=np.uint32), len(freqs)) - starts[cells]
    contexts = _contexts(np.frombuffer(side, np.int8), shapes, num_tables)
    states = np.frombuffer(data, "<u4", lanes, body - 4 * lanes).astype(np.uint64)
    words = np.frombuffer(data, "<u2", offset=body).astype(np.uint64)
    result = np.empty(size, np.uint8)
    taken, bits, slots = 0, np.uint64(BITS), np.uint64(TOTAL - 1)
    for start in range(0, size, lanes):
        context = contexts[start : start + lanes].astype(np.int64) << BITS
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
    _restore(result.view(np.int8), shapes, priors)
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


class _Coder(NamedTuple):
    """How to code some symbols."""

    size: float
    """Estimated bytes."""
    symbols: Bytes
    contexts: Bytes
    """Table of each symbol."""
    levels: Bytes
    """(tables, 256)."""
    width: int
    """Numbers that a table is stored as."""
    side: bytes


def _plan(codes: Codes, shapes: Shapes, priors: bytes) -> _Coder:
    """The best of the plans for so many symbols."""
    some = _PLANS[:2] if codes.size >= _LARGE else _PLANS if codes.size >= _FEW else _PLANS_OF_FEW
    coders = (_coder(codes, shapes, priors, *plan) for plan in some)
    return min(coders, key=lambda coder: coder.size)


def _coder(
    codes: Codes, shapes: Shapes, priors: bytes, columns: bool, fineness: int, least: int
) -> _Coder:
    parts, classes, start, zero = [], [], 0, _BELOW * fineness
    ladder = range(-zero, _ABOVE * fineness + 1)
    weights = np.array([round(2**16 / 2 ** (k / fineness)) for k in ladder], np.float64)
    for rows, cols in shapes:
        magnitude = np.abs(codes[start : start + rows * cols].reshape(rows, cols).astype(np.int16))
        start += magnitude.size
        magnitude = magnitude.astype(np.float64)
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
    last = min(int(common[-1]), first + _most_tables(codes.size) - 1)
    for row, col in classes:
        parts += [(row - first + zero).astype(np.int8), (col - zero).astype(np.int8)]
    head = b"".join(part.tobytes() for part in parts)
    contexts = _contexts(np.frombuffer(head, np.int8), shapes, last - first + 1)
    symbols = codes.view(np.uint8) ^ np.uint8(128)
    counts = np.zeros((last - first + 1, 256), np.int64)
    for at in range(0, symbols.size, 1 << 20):
        part = slice(at, at + (1 << 20))
        cells = contexts[part].astype(np.int64) << 8 | symbols[part]
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    # A table that nobody uses still has to be one.
    counts[~counts.any(axis=1), 128] = 1
    points, whole = points_of(counts), levels_of(counts)
    coders = []
    for stored, levels in ((whole, whole), (points, drawn(points))):
        side = zstd(head + priors + np.diff(stored, axis=1, prepend=np.uint8(0)).tobytes())
        with np.errstate(divide="ignore"):
            nats = np.where(counts > 0, np.log(TOTAL / frequencies(levels)), 0)
        size = float((counts * nats).sum() / np.log(256)) + len(side)
        coders.append(_Coder(size, symbols, contexts, levels, stored.shape[1], side))
    return min(coders, key=lambda coder: coder.size)


def _predict(codes: Codes, shapes: Shapes) -> tuple[Codes, bytes]:
    """Residuals of those matrices that are smaller for it, and the priors: 0 for all others."""
    result, priors, work, start = codes.copy(), bytearray(), 0, 0
    for rows, cols in shapes:
        part = slice(start, start + rows * cols)
        matrix, start = codes[part].reshape(rows, cols), part.stop
        prior, needed = 0, work_of(rows, cols)
        # With fewer rows than columns there is no telling what goes together.
        if rows > cols > 1 and matrix.size >= _FEW and work + needed <= MAX_WORK:
            some = matrix[: _GLANCE[0], : _GLANCE[1]]
            if some.shape == matrix.shape or _best_prior(some)[0]:
                prior, left = _best_prior(matrix)
                result[part] = left.ravel()
        work += needed if prior else 0
        priors.append(prior)
    return result, bytes(priors)


def _best_prior(matrix: Codes) -> tuple[int, Codes]:
    """The prior that leaves least to code, and what it leaves; 0 for the matrix itself."""
    middle = matrix.shape[1].bit_length()
    tried = {0: matrix}
    tried |= {prior: residuals(matrix, prior) for prior in (middle, middle + 1)}
    sizes = {
        prior: _coder(left.ravel(), [left.shape], b"\0", *_TRIAL).size
        for prior, left in tried.items()
    }
    best = min(sizes, key=sizes.__getitem__)
    return best, tried[best]


def _restore(codes: Codes, shapes: Shapes, priors: bytes) -> None:
    """Undo `_predict` in place."""
    start = 0
    for (rows, cols), prior in zip(shapes, priors, strict=True):
        part = slice(start, start + rows * cols)
        start = part.stop
        if prior:
            codes[part] = restored(codes[part].reshape(rows, cols), prior).ravel()


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
