"""Documents become a dataset whole or not at all, split as promised, their text beside them."""

import errno
import gzip
import hashlib
import json
import os

import numpy as np
import pytest
import zstandard

from speedrun.data import prepare
from speedrun.data.prepare import prepare_dataset, read_jsonl
from speedrun.data.shards import open_shard
from speedrun.errors import DataError, OutputError, TokenizerError


def test_the_first_documents_by_hash_are_validation(documents, tokenizer, tmp_path):
    dataset = prepare_dataset(documents, tokenizer, tmp_path / "d", name="x", validation_count=9)
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document[0].encode()).digest())
    texts = [text for _, text in ordered]
    val = np.concatenate(tokenizer.encode_documents(texts[:9]))
    train = np.concatenate(tokenizer.encode_documents(texts[9:]))
    assert np.array_equal(dataset.val_tokens(), val)
    assert np.array_equal(open_shard(dataset.train_shards[0]), train)
    assert dataset.val_raw_bytes == dataset.val_token_bytes == len("".join(texts[:9]).encode())
    assert (dataset.folder / "shard_val_000000.raw").read_text("utf-8") == "".join(texts[:9])
    dataset.verify_validation()


def test_a_predicate_splits_a_stream(documents, tokenizer, tmp_path):
    dataset = prepare_dataset(
        iter(documents), tokenizer, tmp_path / "d", name="x", is_validation="doc5".__eq__
    )
    entry = dataset.manifest.shards[-1]
    assert (entry.split, entry.documents, entry.raw.document_ids) == ("val", 1, ("doc5",))


def test_shards_end_with_a_document(documents, tokenizer, tmp_path):
    dataset = prepare_dataset(
        documents, tokenizer, tmp_path / "d", name="x", validation_count=20, shard_tokens=500
    )
    assert len(dataset.train_shards) > 2 and len(dataset.val_shards) > 1
    for path in (*dataset.train_shards, *dataset.val_shards):
        assert open_shard(path)[0] == tokenizer.bos_id
    manifest = dataset.manifest
    assert sum(shard.documents for shard in manifest.shards) == len(documents)
    dataset.verify_validation()


def test_same_documents_same_fingerprint(documents, tokenizer, tmp_path):
    one, two = (
        prepare_dataset(docs, tokenizer, tmp_path / name, name="x", validation_count=5)
        for name, docs in (("one", documents), ("two", documents[::-1]))
    )
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(("count", "split"), [(0, "val"), (100, "train")])
def test_an_empty_split_is_an_error(documents, tokenizer, tmp_path, count, split):
    with pytest.raises(DataError, match=f"no document fell into the {split} split"):
        prepare_dataset(documents, tokenizer, tmp_path / "d", name="x", validation_count=count)
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_comes_twice_is_named(documents, tokenizer, tmp_path):
    with pytest.raises(DataError, match="'doc3' comes twice"):
        prepare_dataset(
            [*documents, ("doc3", "again")], tokenizer, tmp_path / "d", name="x", validation_count=5
        )


def test_half_a_surrogate_pair_names_the_document(tokenizer, tmp_path):
    documents = [("good", "text"), ("bad", "ab\ud800")]
    with pytest.raises(DataError, match="'bad' holds half a surrogate pair at character 2"):
        prepare_dataset(documents, tokenizer, tmp_path / "d", name="x", validation_count=1)


def test_a_table_that_disagrees_with_the_text_stops_it(documents, tokenizer, tmp_path, monkeypatch):
    table = tokenizer.byte_table()
    table.base[4:] += 1
    monkeypatch.setattr(type(tokenizer), "byte_table", lambda self: table)
    with pytest.raises(TokenizerError, match="the byte table counts"):
        prepare_dataset(documents, tokenizer, tmp_path / "d", name="x", validation_count=5)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_not_touched(documents, tokenizer, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        prepare_dataset(documents, tokenizer, tmp_path, name="x", validation_count=5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(documents, tokenizer, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def fill_up(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:  # the first shard still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OutputError, match="No space left"):
        prepare_dataset(documents, tokenizer, tmp_path / "d", name="x", validation_count=5)
    assert list(tmp_path.iterdir()) == []


LINES = [{"id": "a", "text": "one\ntwo\u2028three"}, {"text": "no id"}]


def pack(suffix: str, content: bytes) -> bytes:
    if suffix == ".zst":
        return zstandard.ZstdCompressor().compress(content)
    return gzip.compress(content) if suffix == ".gz" else content


@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_json_lines_in_each_wrapping(tmp_path, suffix):
    path = tmp_path / f"docs.jsonl{suffix}"
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in LINES) + "\n\n"
    path.write_bytes(pack(suffix, content.encode()))
    assert list(read_jsonl(path)) == [("a", "one\ntwo\u2028three"), ("2", "no id")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": 3}', "line 2: expected an object with a string under 'text'"),
        (b"[1]", "line 2: expected an object"),
        (b"{", "after line 2"),
        (b'{"text": "\xff"}', "cannot read documents from .*utf-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        list(read_jsonl(tmp_path / "d.jsonl"))


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_a_cut_or_foreign_wrapping_is_an_error(tmp_path, suffix):
    path = tmp_path / f"d.jsonl{suffix}"
    whole = pack(suffix, b'{"text": "%s"}\n' % os.urandom(4_000).hex().encode())
    for content in (b"no such wrapping", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot read documents from"):
            list(read_jsonl(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.jsonl.*No such file"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


def test_no_split_rule_is_our_own_mistake(documents, tokenizer, tmp_path):
    with pytest.raises(AssertionError):
        prepare.prepare_dataset(documents, tokenizer, tmp_path / "d", name="x")
