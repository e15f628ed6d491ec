"""Frequency tables of the range coder: stored symbol by symbol, or as points of a curve.

Large matrices can afford a table that says everything; for small ones a curve through a few points
is nearly as good and a tenth as long. Everything is whole numbers: readers get the same tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = 14  # frequencies sum to 2^14: the decoder's tables stay inside a core's cache
TOTAL = 1 << BITS
MAX_LEVEL = 160
_SHARES = np.array([0] + [round(2 ** (v / 8)) for v in range(MAX_LEVEL)], np.int64)
_TOP = 153  # level of a table's commonest symbol: a share of 2^19
_KNOTS = np.array([0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128])
POINTS = 2 + len(_KNOTS)
"""Numbers of a curve: the largest magnitude, the level there, the levels at the knots below it."""
_ROUNDS = 24  # of correcting a curve

# Of each symbol: its magnitude, the knots on either side, and in 1,024ths how near it is to each,
# by squares, in which the logarithm of a bell curve is a straight line.
_MAGNITUDE = np.abs(np.arange(-128, 128))
_RIGHT = np.searchsorted(_KNOTS, _MAGNITUDE).clip(1)
_LOW, _HIGH, _SQUARE = _KNOTS[_RIGHT - 1] ** 2, _KNOTS[_RIGHT] ** 2, _MAGNITUDE**2
_NEAR = np.zeros((256, len(_KNOTS)), np.int64)
_NEAR[np.arange(256), _RIGHT] = (_SQUARE - _LOW) * 1024 // (_HIGH - _LOW)
_NEAR[np.arange(256), _RIGHT - 1] = 1024 - _NEAR[np.arange(256), _RIGHT]
_REACH = 16  # levels that a round can change one by
_EDGES = [round(2**20 * 2 ** ((v + 0.5) / 8)) for v in range(-_REACH, _REACH)]

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]


def frequencies(levels: Bytes) -> Counts:
    """Frequencies (K, 256) that sum to 2^14 in each table."""
    used = levels > 0
    shares = np.cumsum(_SHARES[levels], axis=1)
    # One for every symbol that occurs, the others in proportion. Sums are rounded, not shares:
    # what is cut off from one goes to the next, and none gets the rest of all.
    room = TOTAL - used.sum(axis=1, keepdims=True)
    parts: Counts = np.diff(shares * room // shares[:, -1:], axis=1, prepend=0)
    return parts + used


def levels_of(counts: Counts) -> Bytes:
    """Counts (K, 256) in eighths of octaves below 2^19; rounding costs 0.0005 bits a symbol."""
    edges = [round(2 ** ((v + 0.5) / 8)) for v in range(MAX_LEVEL - 1)]
    scaled = counts * 2**19 // counts.max(axis=1, keepdims=True)
    levels = np.searchsorted(edges, scaled, side="right") + 1
    return np.where(counts > 0, levels, 0).astype(np.uint8)


def drawn(points: Bytes) -> Bytes:
    """Levels (K, 256) of curves (K, POINTS): straight lines between knots, alike on both sides."""
    most, edge, knots = points[:, :1], points[:, 1:2], points[:, 2:].astype(np.int64)
    lines = knots[:, _RIGHT - 1] * (_HIGH - _SQUARE) + knots[:, _RIGHT] * (_SQUARE - _LOW)
    lines = (lines + (_HIGH - _LOW) // 2) // (_HIGH - _LOW)
    levels = np.where(most > _MAGNITUDE, lines, np.where(most == _MAGNITUDE, edge, 0))
    return levels.astype(np.uint8)


def points_of(counts: Counts) -> Bytes:
    """Curves (K, POINTS) for counts (K, 256): around each knot as many symbols as were counted.

    The largest magnitude has a level to itself, since clipping leaves a heap there.
    """
    most = np.where(counts > 0, _MAGNITUDE, 0).max(axis=1, keepdims=True)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # In 1,024ths of a frequency: what each level should get, the outermost first.
    wanted = (_around(counts, most) << BITS) // total
    points = np.full((len(counts), POINTS), _TOP)
    points[:, :1] = most
    # Iterative scaling: a symbol is shared between its knots, so every round is an improvement.
    for _ in range(_ROUNDS):
        given = _around(frequencies(drawn(points.astype(np.uint8))), most)
        change = np.searchsorted(_EDGES, (wanted << 20) // np.maximum(given, 1)) - _REACH
        levels = points[:, 1:] + change
        levels += _TOP - levels.max(axis=1, keepdims=True)
        points[:, 1:] = levels.clip(1)
    return points.astype(np.uint8)


def _around(counts: Counts, most: Counts) -> Counts:
    """(K, 1 + knots): symbols of the largest magnitude, and around each knot; times 1,024."""
    heap = np.where(most == _MAGNITUDE, counts, 0).sum(axis=1, keepdims=True) * 1024
    return np.concatenate([heap, np.where(most > _MAGNITUDE, counts, 0) @ _NEAR], axis=1)
