"""The `.bin` format byte by byte, and every way in which a shard can be damaged."""

import struct

import numpy as np
import pytest

from speedrun.data.shards import list_shards, open_shard, write_shard
from speedrun.errors import DataError, OutputError


def golden(magic=20240520, version=1, promised=3, ids=(1, 2, 65_535)) -> bytes:
    return (
        struct.pack("<3i", magic, version, promised)
        + bytes(1012)
        + struct.pack(f"<{len(ids)}H", *ids)
    )


def test_golden_bytes(tmp_path):
    path = tmp_path / "x_train_000000.bin"
    write_shard(path, np.array([1, 2, 65_535]))
    assert path.read_bytes() == golden()
    assert open_shard(path).tolist() == [1, 2, 65_535]
    assert open_shard(path).dtype == np.uint16


def test_an_opened_shard_is_read_only(tmp_path):
    write_shard(tmp_path / "x", np.arange(4))
    with pytest.raises(ValueError, match="read-only"):
        open_shard(tmp_path / "x")[0] = 1


def test_an_empty_shard_opens(tmp_path):
    write_shard(tmp_path / "x", np.array([], dtype=np.uint16))
    assert open_shard(tmp_path / "x").size == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a token shard"),
        (golden()[:1000], "not a token shard"),
        (golden(magic=20240801), r"starts with \[20240801\]"),
        (golden(version=2), "version 2; only version 1"),
        (golden()[:-2], "2 tokens, header promises 3"),
        (golden()[:-1], r"2\.5 tokens, header promises 3"),
        (golden() + b"\0\0", "4 tokens, header promises 3"),
        (golden(promised=2**31 - 1), "header promises 2,147,483,647"),
        (golden(promised=-1), "header promises -1"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path, content, message):
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_shard(tmp_path / "bad.bin")
    assert "bad.bin" in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.bin: No such file"):
        open_shard(tmp_path / "absent.bin")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([0, 65_536]), "0 to 65,536; a shard holds 0 to 65,535"),
        (np.array([-1]), "run from -1"),
        (np.zeros((2, 2), dtype=np.uint16), r"shape \(2, 2\)"),
        (np.zeros(2), "float64"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, tokens, message):
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "x.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_output_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        write_shard(tmp_path / "file" / "x.bin", np.arange(3))


def test_listing_leaves_out_byte_sidecars_and_temporaries(tmp_path):
    for name in (
        "f_val_000001.bin",
        "f_val_000000.bin",
        "f_val_bytes_000000.bin",
        "f_train_000000.bin",
    ):
        write_shard(tmp_path / name, np.arange(3))
    (tmp_path / ".f_val_000002.bin.abc.tmp").write_bytes(b"")
    (tmp_path / ".f_val_000003.bin").write_bytes(b"")
    assert [path.name for path in list_shards(tmp_path, "val")] == [
        "f_val_000000.bin",
        "f_val_000001.bin",
    ]


def test_a_split_without_shards_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no train shards in .*\*_train_\*\.bin"):
        list_shards(tmp_path, "train")
