"""A dataset folder that was altered is refused, at the door or by the judge's full check."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from speedrun.corpora.load import CorpusSpec
from speedrun.data.dataset import check_vocab, open_dataset
from speedrun.data.prepare import prepare_dataset
from speedrun.data.shards import write_shard
from speedrun.data.tokenizer import train_tokenizer
from speedrun.errors import DataError, TokenizerError


@pytest.fixture(scope="module")
def prepared(documents, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "d"
    prepare_dataset(documents, tokenizer, folder, name="tiny", validation_count=9, source="here")
    return folder


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "d"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_intact_folder_opens_wherever_it_lies(prepared, folder, tokenizer):
    dataset = open_dataset(folder)
    assert dataset.fingerprint == open_dataset(prepared).fingerprint
    assert dataset.tokenizer().sha256 == tokenizer.sha256
    assert (dataset.name, dataset.vocab_size, dataset.bos_id) == ("tiny", tokenizer.vocab_size, 1)
    assert dataset.manifest.lossless and dataset.manifest.source == "here"
    dataset.verify_validation()


def test_a_model_with_another_alphabet_is_refused(folder, tokenizer):
    check_vocab(open_dataset(folder), tokenizer.vocab_size)
    with pytest.raises(DataError, match=rf"model\.vocab_size = 999, tiny .*{tokenizer.vocab_size}"):
        check_vocab(open_dataset(folder), 999)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is damaged"),
        (b'{"version": 1', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[]", "holds no JSON object"),
        (b"[" * 100_000, "is damaged"),
        (b'{"version": 2}', "has version 2, only 1"),
        (b'{"version": 1}', "is damaged: .*name"),
    ],
)
def test_a_damaged_manifest_is_refused(folder, content, message):
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"manifest\.json.*{message}"):
        open_dataset(folder)


@pytest.mark.parametrize("key", ["train_tokens", "val_tokens", "val_raw_bytes"])
def test_totals_that_are_not_the_sums_are_refused(folder, key):
    edit(folder, **{key: read(folder)[key] + 1})
    with pytest.raises(DataError, match=f"{key} is .* its shards sum to"):
        open_dataset(folder)


def test_an_unknown_or_mistyped_key_is_named(folder):
    edit(folder, extra=1)
    with pytest.raises(DataError, match="'extra'"):
        open_dataset(folder)


def test_a_name_that_leaves_the_folder_is_refused(folder):
    shards = read(folder)["shards"]
    shards[0]["file"] = "../d/shard_train_000000.bin"
    edit(folder, shards=shards)
    with pytest.raises(DataError, match=r"'\.\./d/shard_train_000000\.bin' is not a file name"):
        open_dataset(folder)


def test_validation_without_its_text_is_refused(folder):
    shards = read(folder)["shards"]
    shards[1]["raw"] = None
    edit(folder, shards=shards, val_raw_bytes=0)
    with pytest.raises(DataError, match="no raw text"):
        open_dataset(folder)


@pytest.mark.parametrize(
    "name",
    ["shard_train_000000.bin", "shard_val_000000.bin", "shard_val_000000.raw", "tokenizer.model"],
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        open_dataset(folder)


@pytest.mark.parametrize(
    "name",
    ["shard_train_000000.bin", "shard_val_000000.bin", "shard_val_000000.raw", "tokenizer.model"],
)
def test_a_truncated_file_is_refused(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    with pytest.raises(DataError, match=name):
        open_dataset(folder)


def test_a_shard_of_another_length_is_refused(folder):
    write_shard(folder / "shard_train_000000.bin", np.arange(50))
    with pytest.raises(DataError, match="50 tokens, the manifest says"):
        open_dataset(folder)


def test_another_tokenizer_is_refused(folder, documents):
    train_tokenizer([text for _, text in documents], 300, folder / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: sha256 .* were made with"):
        open_dataset(folder)


def test_another_vocabulary_than_the_tokenizers_is_refused(folder):
    edit(folder, tokenizer=read(folder)["tokenizer"] | {"vocab_size": 512})
    with pytest.raises(TokenizerError, match="the shards of tiny were made with 512"):
        open_dataset(folder).verify_validation()


@pytest.mark.parametrize("name", ["shard_val_000000.bin", "shard_val_000000.raw"])
def test_the_full_check_sees_one_flipped_bit(folder, name):
    flip(folder / name, -40)
    dataset = open_dataset(folder)
    with pytest.raises(DataError, match=f"{name}: sha256 .* the file was altered"):
        dataset.verify_validation()


def test_the_full_check_counts_the_tables_bytes(folder):
    edit(folder, val_token_bytes=5)
    with pytest.raises(DataError, match="val_token_bytes is 5, counted"):
        open_dataset(folder).verify_validation()


@pytest.fixture
def golf(documents, tokenizer, tmp_path) -> tuple[Path, CorpusSpec]:
    """Shards and tokenizer in the golf repository's layout, with a byte sidecar in the way."""
    folder = tmp_path / "data" / "datasets" / "tiny_sp"
    encoded = tokenizer.encode_documents([text for _, text in documents])
    val = np.concatenate(encoded[:60])
    write_shard(folder / "fineweb_train_000000.bin", np.concatenate(encoded[60:]))
    write_shard(folder / "fineweb_val_000000.bin", val)
    write_shard(folder / "fineweb_val_bytes_000000.bin", val)
    (tmp_path / "data" / "tokenizers").mkdir()
    (tmp_path / "data" / "tokenizers" / "t.model").write_bytes(tokenizer.model)
    scored = (val.size - 1) // 2048 * 2048
    assert 0 < scored < val.size - 1
    return folder, CorpusSpec(
        name="tiny",
        summary="",
        kind="golf",
        vocab_size=tokenizer.vocab_size,
        folder="tiny_sp",
        tokenizer="t.model",
        how_to_get="fetch it",
        validation_tokens=scored,
        validation_bytes=tokenizer.byte_table().total(val[: scored + 1]),
    )


def test_a_golf_folder_opens_with_its_published_figures(golf):
    folder, spec = golf
    dataset = open_dataset(folder, published=spec)
    assert dataset.val_tokens().size == spec.validation_tokens + 1
    assert dataset.val_raw_bytes == dataset.val_token_bytes == spec.validation_bytes
    assert [path.name for path in dataset.val_shards] == ["fineweb_val_000000.bin"]
    dataset.verify_validation()


def test_a_golf_folder_with_other_tokens_is_refused(golf):
    folder, spec = golf
    flip(folder / "fineweb_val_000000.bin", 1024 + 100)
    with pytest.raises(TokenizerError, match=r"validation targets have .* published are"):
        open_dataset(folder, published=spec).verify_validation()
    write_shard(folder / "fineweb_val_000000.bin", np.arange(100))
    with pytest.raises(DataError, match="99 validation targets, tiny has"):
        open_dataset(folder, published=spec).val_tokens()


def test_a_golf_folder_without_its_tokenizer_still_trains_but_cannot_be_verified(golf):
    folder, spec = golf
    (folder.parents[1] / "tokenizers" / "t.model").unlink()
    dataset = open_dataset(folder, published=spec)
    with pytest.raises(TokenizerError, match=r"cannot read tokenizer .*t\.model"):
        dataset.verify_validation()


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset(tmp_path / "absent")
