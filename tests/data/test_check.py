"""Whatever is done to a dataset, the check names it; of a clean one it finds nothing.

Some of the harm is done by a forger, who afterwards makes hashes, sums and Merkle root agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speedrun.corpora.load import CorpusSpec
from speedrun.data.build import build_dataset
from speedrun.data.byte_ids import ByteIds
from speedrun.data.check import check_folder
from speedrun.data.dataset import open_dataset
from speedrun.data.fetched import FetchedFile, write_fetched
from speedrun.data.job import Job
from speedrun.data.merkle import merkle_root
from speedrun.data.parts import Encoding
from speedrun.data.plan import Layout
from speedrun.data.raw_bytes import ByteTable
from speedrun.data.report import Report
from speedrun.data.shards import HEADER_BYTES, open_shard, write_shard
from speedrun.data.sources import find_source
from speedrun.data.tokenizer import train_tokenizer
from speedrun.files import sha256_file

TRAIN, OTHER, VAL = "shard_train_000000.bin", "shard_train_000001.bin", "shard_val_000000.bin"
RAW, MODEL = "shard_val_000000.raw", "tokenizer.model"


@pytest.fixture(scope="module")
def clean(documents, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    lines = (json.dumps({"id": name, "text": text}) for name, text in documents)
    (folder / "d.jsonl").write_text("\n".join(lines))
    job = Job(
        name="d",
        sources=(find_source(str(folder / "d.jsonl")),),
        encoding=Encoding(with_eos=True),
        layout=Layout(validation_count=12, shard_tokens=1_500),
    )
    return build_dataset(job, tokenizer, folder / "d").folder


@pytest.fixture
def folder(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "d"))


def statuses(report: Report) -> dict[str, str]:
    return {line.id: line.status for line in report.lines}


def test_of_a_clean_dataset_nothing_is_found(clean):
    report = check_folder(clean)
    assert set(statuses(report).values()) == {"PASS"} and report.exit_code == 0
    assert set(statuses(report)) == {
        *("manifest", "files", "headers", "hashes", "merkle root", "tokenizer", "ids"),
        *("documents", "text", "decode", "bytes", "order", "bytes per token"),
        *("overlap", "near overlap"),
    }
    assert report.to_dict()["status"] == "PASS" and len(report.fingerprint) == 64


def read(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def write(folder: Path, manifest: dict) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def edit(**changes: object) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        write(folder, read(folder) | changes)

    return harm


def add(key: str, amount: int) -> Callable[[Path], None]:
    return lambda folder: write(folder, read(folder) | {key: read(folder)[key] + amount})


def edit_shard(name: str, **changes: object) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        manifest = read(folder)
        next(s for s in manifest["shards"] if s["file"] == name).update(changes)
        write(folder, manifest)

    return harm


def forge(folder: Path) -> None:
    """Make the manifest agree with the files, as a cheat would."""
    manifest = read(folder)
    for shard in manifest["shards"]:
        shard["sha256"] = sha256_file(folder / shard["file"])
        shard["tokens"] = open_shard(folder / shard["file"]).size
        if shard["raw"]:
            shard["raw"]["sha256"] = sha256_file(folder / shard["raw"]["file"])
    manifest["tokenizer"]["sha256"] = sha256_file(folder / manifest["tokenizer"]["file"])
    for split in ("train", "val"):
        sizes = [s["tokens"] for s in manifest["shards"] if s["split"] == split]
        manifest[f"{split}_tokens"] = sum(sizes)
    files = {s["file"]: s["sha256"] for s in manifest["shards"]}
    files |= {s["raw"]["file"]: s["raw"]["sha256"] for s in manifest["shards"] if s["raw"]}
    files[manifest["tokenizer"]["file"]] = manifest["tokenizer"]["sha256"]
    manifest["merkle_root"] = merkle_root(files)
    write(folder, manifest)


def poke(name: str, position: int, value: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        position_ = position % len(content)
        assert content[position_ : position_ + len(value)] != value
        content[position_ : position_ + len(value)] = value
        (folder / name).write_bytes(content)

    return harm


def rewrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Change a shard's tokens and forge the manifest."""

    def harm(folder: Path) -> None:
        tokens = change(np.array(open_shard(folder / name)))
        write_shard(folder / name, tokens)
        forge(folder)

    return harm


def put(place: int, token: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(tokens: np.ndarray) -> np.ndarray:
        assert tokens[place] != token
        tokens[place] = token
        return tokens

    return change


def resize(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def starts(tokens: np.ndarray) -> list[int]:
    return [*np.flatnonzero(tokens == 1).tolist(), tokens.size]


def swap_documents(tokens: np.ndarray) -> np.ndarray:
    a, b, c, *_ = starts(tokens)
    return np.concatenate([tokens[b:c], tokens[a:b], tokens[c:]])


def drop_document(tokens: np.ndarray) -> np.ndarray:
    return tokens[starts(tokens)[1] :]


def swap_everywhere(folder: Path) -> None:
    """Two documents change places in tokens, text and manifest: all of it consistent."""
    manifest = read(folder)
    entry = next(s for s in manifest["shards"] if s["file"] == VAL)["raw"]
    first, second = entry["document_bytes"][:2]
    text = (folder / RAW).read_bytes()
    swapped = text[first : first + second] + text[:first] + text[first + second :]
    (folder / RAW).write_bytes(swapped)
    for key in ("document_ids", "document_bytes"):
        entry[key][:2] = entry[key][1::-1]
    write(folder, manifest)
    rewrite(VAL, swap_documents)(folder)


def swap_files(one: str, other: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / one).rename(folder / "kept")
        (folder / other).rename(folder / one)
        (folder / "kept").rename(folder / other)

    return harm


def shift_offsets(folder: Path) -> None:
    manifest = read(folder)
    sizes = next(s for s in manifest["shards"] if s["file"] == VAL)["raw"]["document_bytes"]
    sizes[0], sizes[1] = sizes[0] - 1, sizes[1] + 1
    write(folder, manifest)


def repeat_id(folder: Path) -> None:
    manifest = read(folder)
    ids = next(s for s in manifest["shards"] if s["file"] == VAL)["raw"]["document_ids"]
    ids[1] = ids[0]
    write(folder, manifest)


def break_utf8(folder: Path) -> None:
    text = bytearray((folder / RAW).read_bytes())
    text[5] = 0xFF
    (folder / RAW).write_bytes(text)
    forge(folder)


def change_letter(folder: Path) -> None:
    text = (folder / RAW).read_bytes()
    (folder / RAW).write_bytes(text.replace(b"width", b"depth", 1))
    assert (folder / RAW).read_bytes() != text
    forge(folder)


def other_tokenizer(folder: Path) -> None:
    texts = [f"other words {i} and " * 20 for i in range(99)]
    train_tokenizer(texts, 300, folder / MODEL)


def forged_tokenizer(folder: Path) -> None:
    other_tokenizer(folder)
    forge(folder)


def spaceless_tokenizer(folder: Path) -> None:
    """The piece of the lone space under another name: each such space counts three bytes."""
    model = (folder / MODEL).read_bytes()
    piece = b"\x0a\x03\xe2\x96\x81\x15"
    assert model.count(piece) == 1
    (folder / MODEL).write_bytes(model.replace(piece, b"\x0a\x03\xee\x80\x80\x15"))
    forge(folder)


def plant(similar: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """A validation document at the end of a training shard."""

    def harm(folder: Path) -> None:
        val = np.array(open_shard(folder / VAL))
        places = starts(val)
        longest = max(range(len(places) - 1), key=lambda i: places[i + 1] - places[i])
        document = similar(val[places[longest] : places[longest + 1]].copy())
        manifest = read(folder)
        entry = next(s for s in manifest["shards"] if s["file"] == TRAIN)
        entry["documents"] += 1
        write(folder, manifest)
        rewrite(TRAIN, lambda tokens: np.concatenate([tokens, document]))(folder)

    return harm


def change_some(document: np.ndarray) -> np.ndarray:
    document[10:-2:40] = 300
    return document


def lie_in_header(folder: Path) -> None:
    poke(TRAIN, 8, struct.pack("<i", open_shard(folder / TRAIN).size + 1))(folder)


def both(*harms: Callable[[Path], None]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        for each in harms:
            each(folder)

    return harm


CORRUPTIONS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "shard cut by a token": (resize(TRAIN, lambda b: b[:-2]), "headers", "header promises"),
    "shard cut in a token": (resize(TRAIN, lambda b: b[:-1]), "headers", "header promises"),
    "shard cut in its header": (resize(VAL, lambda b: b[:500]), "headers", "not a token shard"),
    "shard empty": (resize(VAL, lambda b: b""), "headers", "not a token shard"),
    "shard with a tail": (resize(TRAIN, lambda b: b + b"tail"), "headers", "header promises"),
    "another magic": (poke(TRAIN, 0, b"\0"), "headers", "not a token shard"),
    "another version": (poke(TRAIN, 4, b"\2"), "headers", "version 2"),
    "a header that lies": (lie_in_header, "headers", "header promises"),
    "a header with more": (poke(TRAIN, 400, b"\1"), "headers", "where a header has zeros"),
    "negative size": (poke(TRAIN, 8, b"\xff\xff\xff\xff"), "headers", "promises -1"),
    "shard missing": (lambda f: (f / OTHER).unlink(), "files", f"{OTHER} is missing"),
    "shard too many": (
        lambda f: shutil.copy(f / TRAIN, f / "shard_train_000099.bin"),
        "files",
        "shard_train_000099.bin is not in the manifest",
    ),
    "text missing": (lambda f: (f / RAW).unlink(), "files", f"{RAW} is missing"),
    "tokenizer missing": (lambda f: (f / MODEL).unlink(), "tokenizer", "cannot read tokenizer"),
    "one bit of a training shard": (poke(TRAIN, -41, b"\3"), "hashes", TRAIN),
    "one bit of a validation shard": (poke(VAL, -41, b"\3"), "hashes", VAL),
    "one bit of the text": (poke(RAW, 9, b"~"), "hashes", RAW),
    "bytes of ids in the other order": (
        resize(TRAIN, lambda b: b[:1024] + np.frombuffer(b[1024:], "<u2").byteswap().tobytes()),
        "ids",
        f"{TRAIN} has id",
    ),
    "two shards changed places": (swap_files(TRAIN, OTHER), "hashes", TRAIN),
    "a train and a val shard changed places": (swap_files(TRAIN, VAL), "hashes", VAL),
    "an id beyond the vocabulary, forged": (rewrite(TRAIN, put(7, 400)), "ids", "has id 400"),
    "a pad between words, forged": (rewrite(TRAIN, put(7, 0)), "ids", f"{TRAIN} has id 0"),
    "a BOS between words, forged": (rewrite(TRAIN, put(7, 1)), "documents", "the manifest says"),
    "no BOS at the start, forged": (rewrite(TRAIN, put(0, 300)), "documents", "begins with 300"),
    "no EOS at the end, forged": (rewrite(TRAIN, put(-1, 300)), "documents", "EOS for"),
    "a token of validation, forged": (rewrite(VAL, put(9, 300)), "decode", "has other tokens"),
    "a document less, forged": (rewrite(VAL, drop_document), "decode", "documents, the text"),
    "documents swapped, forged": (rewrite(VAL, swap_documents), "decode", "has other tokens"),
    "documents swapped everywhere, forged": (swap_everywhere, "order", "stands after"),
    "a letter of the text, forged": (change_letter, "decode", "has other tokens"),
    "text that is no UTF-8, forged": (break_utf8, "text", "can't decode byte 0xff"),
    "text cut, forged": (both(resize(RAW, lambda b: b[:-3]), forge), "text", "its documents"),
    "offsets moved by a byte": (shift_offsets, "decode", "has other tokens"),
    "an id twice": (repeat_id, "text", "ids stand there twice"),
    "another tokenizer": (other_tokenizer, "hashes", MODEL),
    "another tokenizer, forged": (forged_tokenizer, "tokenizer", "300 pieces, the shards have"),
    "a tokenizer without a space, forged": (spaceless_tokenizer, "tokenizer", "lone space"),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "manifest", "is missing"),
    "manifest of noise": (resize("manifest.json", lambda b: b"\xff{"), "manifest", "is damaged"),
    "manifest cut": (resize("manifest.json", lambda b: b[:-9]), "manifest", "is damaged"),
    "unknown key": (edit(extra=1), "manifest", "'extra'"),
    "sum of training tokens": (add("train_tokens", 1), "manifest", "train_tokens is"),
    "sum of raw bytes": (add("val_raw_bytes", 1), "manifest", "val_raw_bytes is"),
    "count of token bytes": (add("val_token_bytes", 1), "bytes", "val_token_bytes is"),
    "lossless denied": (edit(lossless=False), "bytes", "lossless is False"),
    "Merkle root": (edit(merkle_root="0" * 64), "merkle root", "..."),
    "a recorded hash": (edit_shard(TRAIN, sha256="0" * 64), "hashes", TRAIN),
    "a hash that is none": (edit_shard(TRAIN, sha256="zz"), "merkle root", "cannot be made"),
    "number of documents": (edit_shard(TRAIN, documents=3), "documents", "the manifest says 3"),
    "a name outside": (edit_shard(TRAIN, file="../" + TRAIN), "manifest", "is not a file name"),
    "a file listed twice": (edit_shard(OTHER, file=TRAIN), "manifest", "stands there twice"),
    "another BOS": (
        edit(tokenizer={"file": MODEL, "sha256": "0" * 64, "vocab_size": 400, "bos_id": 5}),
        "tokenizer",
        "1 as BOS, the shards have 5",
    ),
    "a vocabulary too small": (
        edit(tokenizer={"file": MODEL, "sha256": "0" * 64, "vocab_size": 50, "bos_id": 1}),
        "ids",
        f"{TRAIN} has id",
    ),
    "EOS denied": (edit(with_eos=False), "ids", "has id 2"),
    "a planted document, forged": (plant(lambda d: d), "overlap", "1 of 12"),
    "a planted near copy, forged": (plant(change_some), "near overlap", "1 of 12"),
}


def test_the_list_is_long_enough():
    assert len(CORRUPTIONS) >= 50


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found_and_named(folder, name):
    harm, line_id, said = CORRUPTIONS[name]
    harm(folder)
    report = check_folder(folder)
    assert report.status == "FAIL" and report.exit_code == 1
    failing = {line.id: line.found for line in report.lines if line.status == "FAIL"}
    assert said in failing[line_id], failing


def test_a_table_that_lies_is_found(folder, tokenizer, monkeypatch):
    # The space counted twice: in the piece itself, and once more as a leading one.
    honest = tokenizer.byte_table()
    spaced = np.array([tokenizer.decode([t]).startswith(" ") for t in range(tokenizer.vocab_size)])
    lying = ByteTable(honest.base, spaced, honest.boundary)
    monkeypatch.setattr(type(tokenizer), "byte_table", lambda self: lying)
    found = {line.id: line for line in check_folder(folder).lines}
    assert found["tokenizer"].status == "FAIL" and "counts too much" in found["tokenizer"].found


def test_a_consistent_but_other_dataset_has_another_fingerprint(clean, folder):
    rewrite(TRAIN, put(7, 300))(folder)
    one, other = check_folder(clean), check_folder(folder)
    assert other.status == "PASS" and one.fingerprint != other.fingerprint


# Published shards: no manifest, figures from a corpus file.


@pytest.fixture
def golf(documents, tokenizer, tmp_path) -> tuple[Path, CorpusSpec]:
    folder = tmp_path / "datasets" / "tiny_sp"
    encoded = tokenizer.encode_documents([text for _, text in documents])
    val = np.concatenate(encoded[:60])
    write_shard(folder / "f_val_000000.bin", val)
    for index in range(2):
        part = np.concatenate(encoded[60 + 20 * index : 80 + 20 * index])
        write_shard(folder / f"f_train_00000{index}.bin", part)
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "t.model").write_bytes(tokenizer.model)
    record = {
        path.name: FetchedFile(
            remote="", bytes=0, sha256=sha256_file(path), source_hash="", revision=""
        )
        for path in [*folder.iterdir(), tmp_path / "tokenizers" / "t.model"]
    }
    write_fetched(folder, "a/b", record)
    scored = (val.size - 1) // 2048 * 2048
    num_bytes = tokenizer.byte_table().total(val[: scored + 1])
    spec = CorpusSpec(
        name="tiny",
        summary="",
        kind="golf",
        vocab_size=tokenizer.vocab_size,
        folder="tiny_sp",
        tokenizer="t.model",
        how_to_get="fetch it",
        validation_tokens=scored,
        validation_bytes=num_bytes,
        bytes_per_token=round(num_bytes / scored, 4),
        validation_sha256=hashlib.sha256(val.tobytes()).hexdigest(),
    )
    return folder, spec


def changed(spec: CorpusSpec, **changes: object) -> CorpusSpec:
    return dataclasses.replace(spec, **changes)


def test_published_shards_pass_but_for_the_text_that_is_not_there(golf):
    folder, spec = golf
    report = check_folder(folder, spec=spec)
    found = statuses(report)
    assert found.pop("decode") == "UNDECIDED" and set(found.values()) == {"PASS"}
    assert report.exit_code == 2
    unknown = statuses(check_folder(folder, spec=changed(spec, validation_sha256="")))
    assert unknown["split"] == "UNDECIDED"


@pytest.mark.parametrize(
    ("harm", "line_id", "said"),
    [
        (lambda f: (f / "f_train_000000.bin").unlink(), "files", "train shard 000000 is missing"),
        (lambda f: (f / "f_val_000000.bin").unlink(), "files", "no val shards"),
        (poke("f_train_000001.bin", -3, b"\7"), "hashes", "f_train_000001.bin has sha256"),
        (poke("f_val_000000.bin", HEADER_BYTES + 40, b"\2"), "split", ""),
        (lambda f: (f / "fetched.json").write_text("{"), "hashes", "is damaged"),
        (lambda f: write_shard(f / "f_val_000000.bin", np.ones(9, int)), "split", "8 targets"),
        (lambda f: shutil.copy(f / "f_val_000000.bin", f / "f_train_000002.bin"), "overlap", ""),
    ],
)
def test_harm_to_published_shards_is_named(golf, harm, line_id, said):
    folder, spec = golf
    harm(folder)
    lines = {line.id: line for line in check_folder(folder, spec=spec).lines}
    assert lines[line_id].status == "FAIL" and said in lines[line_id].found


def test_documents_in_another_order_are_another_split(golf):
    folder, spec = golf
    path = folder / "f_val_000000.bin"
    write_shard(path, swap_documents(np.array(open_shard(path))))
    assert statuses(check_folder(folder, spec=spec))["split"] == "FAIL"


def test_another_ratio_of_bytes_to_tokens_is_found(golf):
    folder, spec = golf
    lines = {
        line.id: line
        for line in check_folder(folder, spec=changed(spec, bytes_per_token=2.4359)).lines
    }
    assert lines["bytes per token"].status == "FAIL"
    assert lines["bytes per token"].expected == "2.4359"


def test_without_record_and_tokenizer_hashes_and_bytes_are_undecided(golf):
    folder, spec = golf
    (folder / "fetched.json").unlink()
    (folder.parents[1] / "tokenizers" / "t.model").unlink()
    found = statuses(check_folder(folder, spec=spec))
    assert {found[key] for key in ("hashes", "tokenizer", "bytes per token")} == {"UNDECIDED"}
    assert "FAIL" not in found.values()


def test_published_byte_shards_have_one_byte_a_token(documents, tmp_path):
    folder = tmp_path / "datasets" / "tiny_bytes"
    encoded = ByteIds().encode_documents([text for _, text in documents])
    write_shard(folder / "f_val_000000.bin", np.concatenate(encoded[:50]))
    write_shard(folder / "f_train_000000.bin", np.concatenate(encoded[50:]))
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "b.json").write_bytes(ByteIds().model)
    spec = CorpusSpec(
        name="bytes",
        summary="",
        kind="golf",
        vocab_size=260,
        folder="tiny_bytes",
        tokenizer="b.json",
        how_to_get="fetch it",
        bytes_per_token=1.0,
    )
    lines = {line.id: line for line in check_folder(folder, spec=spec).lines}
    assert lines["bytes per token"].found == "1.0000"
    opened = open_dataset(folder, published=spec)
    assert opened.val_raw_bytes == sum(len(text.encode()) for _, text in documents[:50])
    opened.verify_validation()
