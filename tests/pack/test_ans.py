"""Protects the range coder: exact inverse, near the entropy, and no crash whatever the bytes."""

import random
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.errors import FormatError
from speedrun.pack import ans
from speedrun.pack.linear_prediction import restored

KNOTS = (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128)


def gaussian_codes(rows: int, cols: int, *, spread: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    width = 7 * np.exp(spread * rng.standard_normal((1, cols)))
    return np.clip(np.rint(rng.standard_normal((rows, cols)) * width), -31, 31).astype(np.int8)


def correlated(rows: int, cols: int) -> np.ndarray:
    """Codes whose columns share most of what they are."""
    rng = np.random.default_rng(2)
    mixed = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, cols)) * 9
    return np.clip(np.rint(mixed + 3 * rng.standard_normal((rows, cols))), -127, 127).astype(
        np.int8
    )


def entropy_bytes(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum()) / 8


def slow_table(numbers: list[int]) -> list[int]:
    """Frequencies of one table."""
    levels = []
    for symbol in range(256):
        away = abs(symbol - 128)
        if len(numbers) == 256:
            levels.append(numbers[symbol])
        elif away >= numbers[0]:
            levels.append(numbers[1] if away == numbers[0] else 0)
        else:
            right = next(k for k in range(1, len(KNOTS)) if away <= KNOTS[k])
            low, high = KNOTS[right - 1] ** 2, KNOTS[right] ** 2
            left_level, right_level = numbers[1 + right], numbers[2 + right]
            line = left_level * (high - away**2) + right_level * (away**2 - low)
            levels.append((line + (high - low) // 2) // (high - low))
    shares = [round(2 ** ((level - 1) / 8)) if level else 0 for level in levels]
    room, total = 2**14 - sum(share > 0 for share in shares), sum(shares)
    ends = [room * sum(shares[: k + 1]) // total for k in range(256)]
    return [
        (end - before) + (share > 0)
        for end, before, share in zip(ends, [0, *ends[:-1]], shares, strict=True)
    ]


def slow_decode(data: bytes, shapes: list[tuple[int, int]]) -> bytes:
    """FORMAT.md once more, symbol by symbol in plain Python; prediction has its own slow twin."""
    num_tables, kind, side_bytes = struct.unpack_from("<BBI", data)
    width = (256, 17)[kind]
    lanes = -(-sum(rows * cols for rows, cols in shapes) // 8_192)
    side = zstandard.ZstdDecompressor().decompress(data[6 : 6 + side_bytes])
    signed = [byte - 256 if byte > 127 else byte for byte in side]
    tables = []
    for number in range(num_tables):
        deltas = side[len(side) - width * (num_tables - number) :][:width]
        tables.append(slow_table([sum(deltas[: k + 1]) % 256 for k in range(width)]))
    contexts, at = [], 0
    for rows, cols in shapes:
        for row in range(rows):
            for col in range(cols):
                table = signed[at + row] + signed[at + rows + col]
                contexts.append(min(max(table, 0), num_tables - 1))
        at += rows + cols
    priors = side[at : at + len(shapes)]
    states = list(struct.unpack_from(f"<{lanes}I", data, 6 + side_bytes))
    words = iter(np.frombuffer(data, "<u2", offset=6 + side_bytes + 4 * lanes).tolist())
    result = bytearray()
    for i, table in enumerate(contexts):
        x = states[i % lanes]
        slot, start, symbol = x % 2**14, 0, 0
        while start + tables[table][symbol] <= slot:
            start += tables[table][symbol]
            symbol += 1
        x = tables[table][symbol] * (x >> 14) + slot - start
        if x < 2**16:
            x = x << 16 | next(words)
        states[i % lanes] = x
        result.append(symbol ^ 128)
    assert list(words) == []
    assert states == [2**16] * lanes
    start = 0
    for (rows, cols), prior in zip(shapes, priors, strict=True):
        if prior:
            part = slice(start, start + rows * cols)
            stored = np.frombuffer(bytes(result[part]), np.int8).reshape(rows, cols)
            result[part] = restored(stored, prior).tobytes()
        start += rows * cols
    return bytes(result)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=4),
    data=st.data(),
)
def test_any_bytes_come_back(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    size = sum(rows * cols for rows, cols in shapes)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    assert ans.decode(ans.encode(raw, shapes), shapes) == raw


def test_many_lanes_come_back() -> None:
    codes = gaussian_codes(300, 401)
    assert ans.decode(ans.encode(codes.tobytes(), [codes.shape]), [codes.shape]) == codes.tobytes()


@pytest.mark.parametrize("kind", [0, 1])
def test_decoder_agrees_with_a_slow_reading_of_the_format(
    kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few symbols are coded by curves, many by whole tables, where the curve does not fit.
    monkeypatch.setattr("speedrun.pack.ans._PLANS", ((True, 3, 200),))
    parts = [
        gaussian_codes(70, 200, spread=0.5),
        gaussian_codes(30, 90, seed=1),
        correlated(1_400, 12),
    ]
    if not kind:
        parts = [np.sign(part) * (np.abs(part) & 0x7E) for part in parts]
    raw, shapes = b"".join(part.tobytes() for part in parts), [part.shape for part in parts]
    packed = ans.encode(raw, shapes)
    assert packed[0] > 1, "one table only: the test would not see contexts"
    assert packed[1] == kind, "another kind of tables than meant"
    assert slow_decode(packed, shapes) == raw


def test_correlated_columns_cost_less_than_their_entropy() -> None:
    codes = correlated(900, 24)
    packed = ans.encode(codes.tobytes(), [codes.shape])
    assert len(packed) < 0.85 * entropy_bytes(codes)
    assert ans.decode(packed, [codes.shape]) == codes.tobytes()


def test_absurd_prediction_is_refused() -> None:
    codes = correlated(900, 24)
    packed = ans.encode(codes.tobytes(), [codes.shape])
    side_bytes = struct.unpack_from("<BBI", packed)[2]
    side = bytearray(zstandard.ZstdDecompressor().decompress(packed[6 : 6 + side_bytes]))
    assert side[924], "nothing was predicted: the test would see nothing"
    side[924] = 13
    broken = packed[:2] + struct.pack("<I", len(ans.zstd(side))) + ans.zstd(side)
    with pytest.raises(FormatError, match="prediction of weight 13"):
        ans.decode(broken + packed[6 + side_bytes :], [codes.shape])
    side = (
        bytes(2_100)
        + b"\1"
        + np.diff([0] * 128 + [9] + [0] * 127, prepend=0).astype(np.uint8).tobytes()
    )
    broken = struct.pack("<BBI", 1, 0, len(ans.zstd(side))) + ans.zstd(side) + bytes(4 * 135)
    with pytest.raises(FormatError, match="multiplications"):
        ans.decode(broken, [(1_050, 1_050)])


def test_size_is_within_two_thousandths_of_the_entropy() -> None:
    codes = gaussian_codes(1024, 512)
    assert len(ans.encode(codes.tobytes(), [codes.shape])) <= 1.0015 * entropy_bytes(codes)


def test_columns_of_different_width_go_below_the_entropy() -> None:
    codes = gaussian_codes(1024, 512, spread=0.3)
    assert len(ans.encode(codes.tobytes(), [codes.shape])) < 0.985 * entropy_bytes(codes)


def test_ternary_codes_take_their_entropy() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (600, 600)).astype(np.int8)
    assert len(ans.encode(codes.tobytes(), [codes.shape])) < 1.003 * codes.size * np.log2(3) / 8


def test_constant_codes_take_almost_nothing() -> None:
    assert len(ans.encode(bytes(1_000_000), [(1000, 1000)])) < 600


def test_mutations_never_crash() -> None:
    codes = gaussian_codes(9, 12, spread=0.4)
    packed = ans.encode(codes.tobytes(), [codes.shape])
    rng = random.Random(5)
    for _ in range(1500):
        broken = bytearray(packed)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        cut = broken[: rng.randrange(len(broken))] if rng.random() < 0.2 else broken
        try:
            result = ans.decode(bytes(cut), [codes.shape])
        except FormatError:
            continue
        assert len(result) == codes.size


@pytest.mark.parametrize(
    ("data", "shapes"),
    [
        (b"", [(1, 1)]),
        (struct.pack("<BBI", 1, 0, 2**32 - 1), [(1, 1)]),
        (struct.pack("<BBI", 0, 0, 0) + bytes(4), [(1, 1)]),
        (struct.pack("<BBI", 1, 2, 0) + bytes(4), [(1, 1)]),
        (struct.pack("<BBI", 1, 0, 0), [(2**20, 2**20)]),
        (struct.pack("<BBI", 1, 0, 0) + bytes(4), []),
    ],
)
def test_absurd_heads_are_refused(data: bytes, shapes: ans.Shapes) -> None:
    with pytest.raises(FormatError, match=f"{len(data)} bytes for .* do not fit"):
        ans.decode(data, shapes)
