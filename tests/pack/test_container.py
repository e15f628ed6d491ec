"""Protects `model.srz`: the bytes of FORMAT.md, and a reader that nothing hostile can crash."""

import hashlib
import json
import random
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from speedrun.errors import FormatError, PackError
from speedrun.pack.container import MAGIC, Section, read_container, read_header, write_container

DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
SHAPES = ((), (0,), (1,), (7,), (3, 0), (2, 3), (1, 2, 3, 4))


def seal(header: Any, body: bytes = b"") -> bytes:
    """A file around a header of our choice, with a right digest: only its claims are false."""
    text = header if isinstance(header, bytes) else compact(header)
    whole = MAGIC + struct.pack("<HII", 1, len(text), len(text)) + text + body
    return whole + hashlib.sha256(whole).digest()


def compact(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def sample() -> bytes:
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.standard_normal((8, 16)) * 7), -31, 31).astype(np.int8)
    scales = rng.random(8).astype(np.float16)
    sections = [Section({"w:codes": codes}, "ans"), Section({"w:scales": scales, "b": scales})]
    return write_container(sections, {"run": {"name": "x"}})


@pytest.mark.parametrize("codec", ["raw", "zstd", "lzma", "brotli", "ans", "best"])
def test_every_dtype_and_shape_comes_back(codec: str) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        dtype + str(shape): rng.integers(0, 2, shape).astype(dtype)
        for dtype in DTYPES
        for shape in SHAPES
    }
    sections = [
        Section({name: array for name, array in arrays.items() if array.itemsize == width}, codec)
        for width in (1, 2, 4, 8)
    ]
    meta, found = read_container(write_container(sections, {"a": [1, 2.5, None, "ü"]}))
    assert meta == {"a": [1, 2.5, None, "ü"]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable


def test_non_contiguous_and_big_endian_arrays_come_back() -> None:
    base = np.arange(24, dtype=np.int16).reshape(4, 6)
    arrays = {"t": base.T, "s": base[::2, ::-1], "b": base.astype(">i2")}
    found = read_container(write_container([Section(arrays)], {}))[1]
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)


def test_special_floats_come_back_bit_by_bit() -> None:
    array = np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32)
    found = read_container(write_container([Section({"x": array})], {}))[1]["x"]
    assert found.tobytes() == array.tobytes()


def test_no_sections_at_all() -> None:
    assert read_container(write_container([], {"k": 1})) == ({"k": 1}, {})


def test_golden_bytes() -> None:
    header = (
        b'{"arrays":[["a","i1",[2],0],["b","u2",[2],1]],'
        b'"meta":{"k":1},"sections":[["raw",2,2],["raw",4,4]]}'
    )
    expected = (
        b"\x89SRZ\r\n\x1a\n"  # magic
        b"\x01\x00"  # version
        b"\x62\x00\x00\x00\x62\x00\x00\x00"  # the header is 98 bytes, stored plain
        + header
        + b"\x05\xff"  # a = 5, -1
        + b"\x02\x04\x01\x03"  # b = 0x0102, 0x0304: low bytes first, then high bytes
    )
    expected += hashlib.sha256(expected).digest()
    arrays = [
        Section({"a": np.array([5, -1], np.int8)}, "raw"),
        Section({"b": np.array([0x0102, 0x0304], np.uint16)}, "raw"),
    ]
    assert write_container(arrays, {"k": 1}) == expected
    assert read_header(expected).body == 18 + 98


def test_other_processes_write_the_same_bytes() -> None:
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests/pack'); from test_container import sample;"
        "print(hashlib.sha256(sample()).hexdigest())"
    )
    expected = hashlib.sha256(sample()).hexdigest()
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == expected


@pytest.mark.parametrize(
    ("sections", "meta", "text"),
    [
        ([Section({"a": np.zeros(2, np.int8), "b": np.zeros(2)})], {}, r"item sizes \[1, 8\]"),
        ([Section({})], {}, "item sizes"),
        ([Section({"a": np.zeros(2, np.complex64)})], {}, "complex64"),
        ([Section({"": np.zeros(2)})], {}, "array"),
        ([Section({"a": np.zeros(1)}), Section({"a": np.zeros(1)})], {}, "'a' is listed twice"),
        ([], {"x": float("nan")}, "not JSON compliant"),
        ([], {"x": object()}, "not JSON serializable"),
        ([], {1: 2, "1": 3}, "cannot be packed"),
    ],
)
def test_what_has_no_place_is_refused(sections: Any, meta: Any, text: str) -> None:
    with pytest.raises(PackError, match=text):
        write_container(sections, meta)


def test_every_truncation_is_refused() -> None:
    packed = sample()
    for length in range(len(packed)):
        with pytest.raises(FormatError):
            read_container(packed[:length])


def test_every_bit_flip_is_refused() -> None:
    packed = sample()
    for position in range(len(packed)):
        broken = bytearray(packed)
        broken[position] ^= 1 << position % 8
        with pytest.raises(FormatError):
            read_container(bytes(broken))


def test_mutations_under_a_right_digest_never_crash() -> None:
    packed, rng = sample()[:-32], random.Random(7)
    for _ in range(3000):
        broken = bytearray(packed)
        for _ in range(rng.randint(1, 5)):
            position = rng.randrange(8, len(broken))
            match rng.randrange(3):
                case 0:
                    broken[position] = rng.randrange(256)
                case 1:
                    del broken[position : position + rng.randint(1, 9)]
                case 2:
                    broken[position:position] = rng.randbytes(rng.randint(1, 9))
            if len(broken) < 40:
                break
        whole = bytes(broken)
        try:
            read_container(whole + hashlib.sha256(whole).digest(), raw_limit_bytes=1 << 20)
        except FormatError:
            continue


ONE = {"arrays": [["a", "i1", [2], 0]], "meta": {}, "sections": [["raw", 2, 2]]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arrays": [["a", "i1", [2], 0], ["a", "i1", [0], 0]]}, "'a' is listed twice"),
        ({"arrays": [["a", "i1", [3], 0]]}, "has 2 bytes, its arrays 3"),
        ({"arrays": [["a", "i1", [2**40, 2**40], 0]]}, "its arrays 1,208,925"),
        ({"arrays": [["a", "i1", [-2], 0]]}, r"\['a', 'i1', \[-2\], 0\]"),
        ({"arrays": [["a", "i1", [True, 2], 0]]}, "need .name, dtype"),
        ({"arrays": [["a", "i1", [2.0], 0]]}, "need .name, dtype"),
        ({"arrays": [["a", "i1", [1] * 8 + [2], 0]]}, "need .name, dtype"),
        ({"arrays": [["a", "O8", [2], 0]]}, "need .name, dtype"),
        ({"arrays": [["a" * 257, "i1", [2], 0]]}, "need .name, dtype"),
        ({"arrays": [["a", "i1", [2], 1]]}, "out of order"),
        ({"arrays": []}, "section 0 has 2 bytes, its arrays 0"),
        ({"arrays": [["a", "i2", [1], 0], ["b", "i1", [0], 0]]}, "item sizes"),
        ({"sections": [["raw", 2, 9]]}, "sections end at byte"),
        ({"sections": [["raw", 2, 2**60]]}, "need .codec, bytes"),
        ({"sections": [["zap", 2, 2]]}, "no codec 'zap'"),
        ({"sections": [["ans", 2, 2]]}, "ans section of 2 bytes for 2 weights"),
        ({"sections": [["zstd", 2, 2]]}, "zstd"),
        ({"sections": [["raw", 2, 2], ["raw", 0, 0]]}, "section 1 has 0 bytes"),
        ({"meta": []}, "needs arrays, meta and sections"),
        ({"extra": 1}, "has keys"),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], text: str) -> None:
    assert read_container(seal(ONE, b"ab"))[1]["a"].tolist() == [97, 98]
    with pytest.raises(FormatError, match=text):
        read_container(seal(ONE | change, b"ab"))


@pytest.mark.parametrize(
    "header",
    [
        b'{"arrays": [],"meta":{},"sections":[]}',
        b'{"meta":{},"arrays":[],"sections":[]}',
        b'{"arrays":[],"meta":{},"meta":{},"sections":[]}',
        b'{"arrays":[],"meta":{"x":NaN},"sections":[]}',
        b'{"arrays":[],"meta":{"x":1e999},"sections":[]}',
        b'{"arrays":[],"meta":{"x":1.50},"sections":[]}',
        b'{"arrays":[],"meta":{"x":' + b"9" * 5000 + b'},"sections":[]}',
        '{"arrays":[],"meta":{"x":"ü"},"sections":[]}'.encode(),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"",
    ],
)
def test_headers_that_are_not_canonical_json_are_refused(header: bytes) -> None:
    with pytest.raises(FormatError, match="canonical JSON"):
        read_container(seal(header))


def test_foreign_files_are_named() -> None:
    for foreign in (b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with pytest.raises(FormatError, match=r"not a model\.srz"):
            read_container(foreign)


def test_another_version_is_named() -> None:
    packed = bytearray(sample())
    packed[8] = 2
    with pytest.raises(FormatError, match="version 2, this reader knows 1"):
        read_container(bytes(packed))


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    packed = write_container([Section({"zeros": np.zeros(3_000_000, np.int8)})], {})
    assert len(packed) < 1_000
    with pytest.raises(FormatError, match=r"3,000,000 bytes, the limit is 1,000,000"):
        read_container(packed, raw_limit_bytes=1_000_000)


def test_absurd_header_lengths_are_refused() -> None:
    whole = MAGIC + struct.pack("<HII", 1, 2**32 - 1, 2**32 - 1) + bytes(50)
    with pytest.raises(FormatError, match="4,294,967,295"):
        read_container(whole + hashlib.sha256(whole).digest())


def test_booleans_are_zero_or_one() -> None:
    header = {"arrays": [["a", "b1", [2], 0]], "meta": {}, "sections": [["raw", 2, 2]]}
    with pytest.raises(FormatError, match="'a' is boolean"):
        read_container(seal(header, b"\x01\x02"))
