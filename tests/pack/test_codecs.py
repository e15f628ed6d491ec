"""Protects the compressors: exact inverse, and never more bytes than the file promises."""

import lzma

import pytest

from speedrun.errors import FormatError, PackError
from speedrun.pack.codecs import CODECS, compress, decompress

TEXT = b"the quick brown fox jumps over the lazy dog. " * 50


@pytest.mark.parametrize("codec", [*CODECS, "best"])
@pytest.mark.parametrize("raw", [b"", b"x", TEXT])
def test_bytes_come_back(codec: str, raw: bytes) -> None:
    shapes = [(1, len(raw))]
    taken, stored = compress(raw, codec, shapes)
    assert decompress(stored, taken, len(raw), shapes) == raw
    assert len(stored) <= len(raw)


def test_bytes_that_do_not_shrink_stay_raw() -> None:
    assert compress(b"abc", "zstd") == ("raw", b"abc")


def test_ans_without_matrices_becomes_zstd() -> None:
    assert compress(TEXT, "ans")[0] == "zstd"


def test_best_is_the_smallest() -> None:
    sizes = {codec: len(compress(TEXT, codec, [(1, len(TEXT))])[1]) for codec in CODECS}
    assert len(compress(TEXT, "best", [(1, len(TEXT))])[1]) == min(sizes.values())


@pytest.mark.parametrize("codec", ["raw", "zstd", "lzma", "brotli"])
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(codec: str, change: int) -> None:
    taken, stored = compress(TEXT, codec)
    assert taken == codec or codec == "raw"
    with pytest.raises(FormatError, match=f"{len(TEXT) + change:,}"):
        decompress(stored, taken, len(TEXT) + change)


@pytest.mark.parametrize("codec", ["zstd", "lzma", "brotli"])
def test_a_bomb_is_stopped_at_the_promised_size(codec: str) -> None:
    bomb = compress(bytes(3_000_000), codec)[1]
    assert len(bomb) < 10_000
    with pytest.raises(FormatError, match="1,000"):
        decompress(bomb, codec, 1_000)


@pytest.mark.parametrize("codec", ["zstd", "lzma", "brotli"])
def test_cut_and_extended_streams_are_refused(codec: str) -> None:
    stored = compress(TEXT, codec)[1]
    for broken in (stored[:-1], stored[: len(stored) // 2], b"", stored + b"\0"):
        with pytest.raises(FormatError):
            decompress(broken, codec, len(TEXT))


def test_lzma_with_a_larger_dictionary_is_no_way_out() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    stored = lzma.compress(bytes(100), lzma.FORMAT_RAW, filters=filters)
    assert decompress(stored, "lzma", 100) == bytes(100)


def test_unknown_codecs_are_named() -> None:
    with pytest.raises(PackError, match="'zip'; choose raw, zstd"):
        compress(b"", "zip")
    with pytest.raises(FormatError, match="'zip'"):
        decompress(b"", "zip", 0)
