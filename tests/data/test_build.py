"""Streamed builds make what the simple version makes, from any source, killed or not."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard

from speedrun.data import own_tokenizer, plan, sources
from speedrun.data.build import build_dataset
from speedrun.data.byte_ids import ByteIds
from speedrun.data.dataset import Dataset
from speedrun.data.filters import Filters, alpha_frac, digit_frac
from speedrun.data.job import Job
from speedrun.data.parts import Encoding
from speedrun.data.plan import Layout
from speedrun.data.prepare import prepare_dataset
from speedrun.data.shards import open_shard
from speedrun.data.sources import find_source, read_blocks
from speedrun.errors import DataError, OutputError, TokenizerError

ROOT = Path(__file__).resolve().parents[2]


def write_jsonl(path: Path, documents) -> Path:
    lines = (json.dumps({"id": name, "text": text}) for name, text in documents)
    content = "\n".join(lines).encode() + b"\n"
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)
    return path


def make_job(*words: object, block_bytes: int = 20_000, **changes) -> Job:
    layout = Layout(**{"validation_count": 9, "keep_overlap": True, **changes.pop("layout", {})})
    return Job(
        name="d",
        sources=tuple(find_source(str(word)) for word in words),
        encoding=Encoding(**changes.pop("encoding", {})),
        layout=layout,
        block_bytes=block_bytes,
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def texts_of(dataset: Dataset, tokenizer, split: str) -> list[str]:
    paths = dataset.train_shards if split == "train" else dataset.val_shards
    found = []
    for path in paths:
        tokens = open_shard(path)
        starts = [*np.flatnonzero(tokens == tokenizer.bos_id).tolist(), tokens.size]
        found += [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(starts)]
    return found


@pytest.fixture
def lines(documents, tmp_path) -> Path:
    return write_jsonl(tmp_path / "docs.jsonl", documents)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_shards_are_those_of_the_simple_version(lines, documents, tokenizer, tmp_path, workers):
    simple = prepare_dataset(
        documents, tokenizer, tmp_path / "s", name="d", validation_count=9, shard_tokens=2_000
    )
    job = make_job(lines, layout={"shard_tokens": 2_000})
    built = build_dataset(job, tokenizer, tmp_path / "d", workers=workers)
    one, other = tree(simple.folder), tree(built.folder)
    assert one.pop("manifest.json") != other.pop("manifest.json")  # the stream knows its sources
    assert one == other and len(built.train_shards) > 3
    built.verify_validation()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_manifest_accounts_for_every_record(documents, tokenizer, tmp_path):
    path = tmp_path / "docs.jsonl"
    odd = [("tiny", "ab"), ("digits", "1234567 x"), ("copy", documents[3][1]), ("empty", "")]
    write_jsonl(path, [*documents, *odd])
    filters = Filters(min_bytes=5, max_digit_frac=0.5)
    job = make_job(path, encoding={"filters": filters})
    manifest = build_dataset(job, tokenizer, tmp_path / "d").manifest
    (source,) = manifest.sources
    assert source.records == 104 and source.documents == 100
    assert source.left_out == {"too short": 2, "too many digits": 1, "duplicate": 1}
    assert source.raw_bytes == sum(len(text.encode()) for _, text in documents)
    assert manifest.train_raw_bytes + manifest.val_raw_bytes == source.raw_bytes
    assert source.files[0].file == "docs.jsonl" and len(manifest.merkle_root) == 64


def test_a_text_that_comes_again_is_left_out_wherever_it_comes(documents, tokenizer, tmp_path):
    one = write_jsonl(tmp_path / "a.jsonl", documents[:50])
    other = write_jsonl(
        tmp_path / "b.jsonl", [(f"b{i}", text) for i, (_, text) in enumerate(documents)]
    )
    built = build_dataset(make_job(one, other), tokenizer, tmp_path / "d")
    found = texts_of(built, tokenizer, "train") + texts_of(built, tokenizer, "val")
    assert Counter(found) == Counter(text for _, text in documents)
    job = make_job(one, other, layout={"keep_duplicates": True})
    kept = build_dataset(job, tokenizer, tmp_path / "k")
    assert sum(source.documents for source in kept.manifest.sources) == 150


def test_sorting_in_many_passes_gives_the_same_plan(documents, tokenizer, tmp_path, monkeypatch):
    twice = [*documents, *((f"x{name}", text) for name, text in documents)]
    path = write_jsonl(tmp_path / "d.jsonl", twice)
    whole = build_dataset(make_job(path), tokenizer, tmp_path / "one")
    monkeypatch.setattr(plan, "ROWS_AT_ONCE", 17)
    parts = build_dataset(make_job(path), tokenizer, tmp_path / "two")
    assert tree(whole.folder) == tree(parts.folder)
    assert parts.manifest.sources[0].left_out == {"duplicate": 100}


def test_stream_order_is_the_order_of_the_files(lines, documents, tokenizer, tmp_path):
    job = make_job(lines, layout={"order": "stream"})
    built = build_dataset(job, tokenizer, tmp_path / "d")
    texts = [text for _, text in documents]
    assert texts_of(built, tokenizer, "val") == texts[:9]
    assert texts_of(built, tokenizer, "train") == texts[9:]


@pytest.mark.parametrize("order", ["hash", "stream"])
def test_a_split_by_hash_depends_on_the_id_alone(lines, documents, tokenizer, tmp_path, order):
    layout = {"validation_count": None, "validation_frac": 0.2, "order": order}
    built = build_dataset(make_job(lines, layout=layout), tokenizer, tmp_path / "d")
    few = write_jsonl(tmp_path / "few.jsonl", documents[:60])
    less = build_dataset(make_job(few, layout=layout), tokenizer, tmp_path / "l")
    held_out = [set(each.manifest.shards[-1].raw.document_ids) for each in (built, less)]
    assert 8 < len(held_out[0]) < 35
    assert held_out[1] == held_out[0] & {name for name, _ in documents[:60]}


def mixture(documents, tmp_path) -> list[Path]:
    return [
        write_jsonl(tmp_path / f"{name}.jsonl", [(f"{name}{n}", name + t) for n, t in documents])
        for name in ("a", "b", "c")
    ]


def test_a_mixture_keeps_its_shares_at_any_time(documents, tokenizer, tmp_path):
    a, b, c = mixture(documents, tmp_path)
    job = make_job(f"{a}=6", f"{b}=3", f"{c}=1", layout={"order": "stream"})
    built = build_dataset(job, tokenizer, tmp_path / "d")
    sizes = [source.raw_bytes for source in built.manifest.sources]
    assert np.array(sizes) / sum(sizes) == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
    assert built.manifest.sources[0].documents == 100  # it ends where the first runs dry
    first = texts_of(built, tokenizer, "train")[:60]
    part = sum(len(text) for text in first if text[0] == "a") / sum(map(len, first))
    assert part == pytest.approx(0.6, abs=0.1)


def test_a_mixture_is_a_function_of_its_seed(documents, tokenizer, tmp_path):
    words = [f"{path}={w}" for path, w in zip(mixture(documents, tmp_path), (3, 2, 1), strict=True)]
    found = []
    for index, (seed, workers) in enumerate([(1, 1), (1, 2), (2, 1)]):
        job = make_job(*words, layout={"order": "stream", "seed": seed})
        built = build_dataset(job, tokenizer, tmp_path / f"d{index}", workers=workers)
        found.append(tree(built.folder))
    assert found[0] == found[1] != found[2]


def test_a_mixture_reads_on_where_filters_took_much(documents, tokenizer, tmp_path):
    a, *_ = mixture(documents, tmp_path)
    noise = [(f"n{i}", "1" * 300) for i in range(300)]
    rare = write_jsonl(tmp_path / "rare.jsonl", [*noise, *documents])
    filters = {"filters": Filters(max_digit_frac=0.9)}
    job = make_job(f"{rare}=1", f"{a}=1", layout={"order": "stream"}, encoding=filters)
    built = build_dataset(job, tokenizer, tmp_path / "d")
    assert min(source.documents for source in built.manifest.sources) > 80


def test_every_kind_of_file_gives_the_same_documents(documents, tokenizer, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")
    columns = {"id": [n for n, _ in documents], "text": [t for _, t in documents], "x": [1] * 100}
    table = pytest.importorskip("pyarrow").table(columns)
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=17)
    paths = [tmp_path / "d.parquet"]
    paths += [write_jsonl(tmp_path / f"d.jsonl{end}", documents) for end in ("", ".gz", ".zst")]
    shards = set()
    for index, path in enumerate(paths):
        built = build_dataset(make_job(path), tokenizer, tmp_path / f"o{index}")
        shards.add(built.train_shards[0].read_bytes() + built.val_shards[0].read_bytes())
    assert len(shards) == 1


def test_text_files_are_documents_and_long_ones_are_cut_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TEXT_PIECE_BYTES", 1_000)
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    long = "".join(f"line {i} naïve\n" for i in range(300))
    endless = "é😀" * 700
    (folder / "a.txt").write_text("short\n", encoding="utf-8")
    (folder / "deep" / "b.txt").write_text(long, encoding="utf-8", newline="")
    (folder / "c.txt").write_text(endless, encoding="utf-8")
    (folder / "notes.md").write_text("not a source")
    records = [record for block in read_blocks(find_source(str(folder))) for record in block]
    texts: dict[str, str] = {}
    for _, name, content in records:
        texts[name.partition(":")[0]] = texts.get(name.partition(":")[0], "") + content.decode()
    assert texts == {"a.txt": "short\n", "b.txt": long, "c.txt": endless}
    assert all(len(content) <= 1_100 for _, _, content in records)
    pieces = [content for _, name, content in records if name.startswith("b.txt")]
    assert len(pieces) > 4 and all(piece.endswith(b"\n") for piece in pieces)


def test_patterns_and_weights_are_read(lines, tmp_path):
    found = find_source(f"{tmp_path}/*.jsonl=0.25")
    assert found.files == (lines,) and found.weight == 0.25
    odd = write_jsonl(tmp_path / "a=1.jsonl", [("x", "y")])
    assert find_source(str(odd)).weight is None
    for word, message in {
        str(tmp_path / "absent"): "no such files",
        f"{lines}=0": "'0' is no weight",
        f"{lines}=many": "'many' is no weight",
        __file__: "cannot read test_build.py",
    }.items():
        with pytest.raises(DataError, match=message):
            find_source(word)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": 3}', "expected an object with a string under 'text'"),
        (b"{", "no readable text"),
        (b'{"text": "\\ud800"}', "surrogates not allowed"),
        (b'{"text": "\xff"}', "no readable text"),
        (b"[" * 100_000, "no readable text"),
    ],
)
def test_a_record_without_text_is_named_or_counted(documents, tokenizer, tmp_path, line, message):
    path = write_jsonl(tmp_path / "d.jsonl", documents)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=rf"d\.jsonl:101: .*{message}"):
        build_dataset(make_job(path), tokenizer, tmp_path / "d")
    job = make_job(path, encoding={"skip_unreadable": True})
    built = build_dataset(job, tokenizer, tmp_path / "d")  # another job: begins again
    assert built.manifest.sources[0].left_out == {"unreadable": 1}


def test_an_error_in_a_worker_comes_out_as_itself(documents, tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", documents)
    path.write_bytes(path.read_bytes() + b"[]\n")
    with pytest.raises(DataError, match=r"d\.jsonl:101: expected an object"):
        build_dataset(make_job(path), tokenizer, tmp_path / "d", workers=2)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_file_is_an_error_and_not_a_short_one(documents, tokenizer, tmp_path, suffix):
    path = write_jsonl(tmp_path / f"d.jsonl{suffix}", documents)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot read documents from"):
        build_dataset(make_job(path), tokenizer, tmp_path / "d")


def test_a_line_too_long_for_memory_is_refused(documents, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_RECORD_BYTES", 2_000_000)
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 5_000_000 + b'"}')
    with pytest.raises(DataError, match="after number 0: a line of more than 2,000,000 bytes"):
        build_dataset(make_job(path), tokenizer, tmp_path / "d")


def test_eos_ends_each_document_where_it_is_asked_for(lines, documents, tokenizer, tmp_path):
    job = make_job(lines, encoding={"with_eos": True})
    built = build_dataset(job, tokenizer, tmp_path / "d")
    tokens = open_shard(built.val_shards[0])
    ends = np.append(np.flatnonzero(tokens == tokenizer.bos_id)[1:], tokens.size) - 1
    assert (tokens[ends] == tokenizer.eos_id).all() and ends.size == 9
    assert built.manifest.with_eos and built.manifest.lossless
    built.verify_validation()


def test_a_tokenizer_without_eos_cannot_place_one(lines, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "eos_id", -1)
    with pytest.raises(TokenizerError, match="no EOS apart from its BOS"):
        build_dataset(make_job(lines, encoding={"with_eos": True}), tokenizer, tmp_path / "d")


@pytest.mark.parametrize("order", ["hash", "stream"])
def test_a_trained_tokenizer_has_not_seen_the_validation_text(
    documents, tmp_path, monkeypatch, order
):
    seen: list[str] = []
    train = own_tokenizer.train_tokenizer

    def spy(texts, size, target):
        seen.extend(texts)
        return train(seen, size, target)

    monkeypatch.setattr(own_tokenizer, "train_tokenizer", spy)
    path = write_jsonl(
        tmp_path / "d.jsonl", [(f"{i}-{n}", f"{t}{i}") for i in range(4) for n, t in documents]
    )
    job = make_job(path, layout={"order": order})
    built = build_dataset(job, 400, tmp_path / "d")
    assert built.vocab_size == 400 and len(seen) > 150
    held_out = set(texts_of(built, built.tokenizer(), "val"))
    assert len(held_out) == 9 and not held_out & set(seen)


def test_an_empty_split_is_an_error(lines, tokenizer, tmp_path):
    job = make_job(lines, layout={"validation_count": 100})
    with pytest.raises(DataError, match="no document fell into the train split"):
        build_dataset(job, tokenizer, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_folder_with_content_is_not_touched(lines, tokenizer, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        build_dataset(make_job(lines), tokenizer, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert not (tmp_path / ".mine.work").exists()


BUILD = """
import sys
from pathlib import Path
from speedrun.data.build import build_dataset
from speedrun.data.job import Job
from speedrun.data.parts import Encoding
from speedrun.data.plan import Layout
from speedrun.data.sources import find_source
from speedrun.data.tokenizer import Tokenizer
if __name__ == "__main__":
    source, model, out = sys.argv[1:]
    job = Job(name="d", sources=(find_source(source),), encoding=Encoding(), block_bytes=100_000,
              layout=Layout(validation_count=20, shard_tokens=300_000))
    build_dataset(job, Tokenizer.load(Path(model)), Path(out), workers=2, echo=print)
"""


def count_finished(work: Path) -> int:
    return sum(1 for name in ("parts", "entries") for _ in work.glob(f"{name}/[!.]*"))


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_build_goes_on_and_gives_the_same_bytes(tokenizer, tmp_path, kills):
    library = Path(os.__file__).parent
    texts = [(p.name, p.read_text("utf-8")) for p in sorted(library.glob("*.py"))[: 40 * kills]]
    source = write_jsonl(tmp_path / "library.jsonl.zst", texts)
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    (tmp_path / "build.py").write_text(BUILD)

    def start(out: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "build.py", source, "t.model", tmp_path / out]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(list(map(str, words)), cwd=tmp_path, env=environment)

    assert start("whole").wait(timeout=120) == 0
    whole, work = tree(tmp_path / "whole"), tmp_path / ".killed.work"
    blocks = read_blocks(find_source(str(source)), block_bytes=100_000)
    # Moments counted in finished files, so that a busy machine changes nothing.
    steps = sum(1 for _ in blocks) + sum(name.endswith(".bin") for name in whole)
    for moment in sorted(random.Random(5).sample(range(1, steps - 2), kills)):
        process = start("killed")
        while (
            process.poll() is None
            and len([*work.glob("parts/*"), *work.glob("entries/*")]) < moment
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed").exists() and work.exists()
    assert start("killed").wait(timeout=120) == 0
    assert tree(tmp_path / "killed") == whole and len(whole) > 4 and not work.exists()


def test_shares_of_digits_and_letters_are_those_of_the_slow_count():
    for text in ("", "a1é2中٣ 9", "naïve ½ \0", "123", "ΑΒΓ abc"):
        slow = sum(letter in "0123456789" for letter in text) / max(len(text), 1)
        assert digit_frac(text, text.encode()) == slow
        letters = sum(map(str.isalpha, text)) / max(len(text), 1)
        assert alpha_frac(text, text.encode()) == letters


def test_filters_name_what_they_leave_out():
    filters = Filters(min_bytes=3, max_bytes=9, max_digit_frac=0.5, min_alpha_frac=0.3)
    reasons = [filters.reason(t, t.encode()) for t in ("ab", "a" * 10, "1234a", "a----", "abc")]
    assert reasons == ["too short", "too long", "too many digits", "too few letters", ""]
    for wrong in ({"min_bytes": -1}, {"min_bytes": 9, "max_bytes": 3}, {"max_digit_frac": 2.0}):
        with pytest.raises(DataError):
            Filters(**wrong)


def test_byte_shards_weigh_one_byte_a_token(lines, documents, tmp_path):
    built = build_dataset(make_job(lines), ByteIds(), tmp_path / "d")
    assert built.manifest.lossless and built.vocab_size == 260
    assert built.manifest.val_tokens == built.val_raw_bytes + 9  # a BOS for each document
    built.verify_validation()
