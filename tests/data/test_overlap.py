"""Documents of both splits are found, the same and the changed; unrelated ones are not."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from speedrun.data import overlap
from speedrun.data.build import build_dataset
from speedrun.data.job import Job
from speedrun.data.overlap import find_overlap, hash_runs, signatures, similarity
from speedrun.data.parts import Encoding
from speedrun.data.plan import Layout
from speedrun.data.shards import write_shard
from speedrun.data.sources import find_source
from speedrun.data.tokenizer import Tokenizer, train_tokenizer

BOS = 1


@pytest.fixture(scope="module")
def words() -> list[str]:
    dice = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(dice.choices(letters, k=dice.randrange(2, 9))) for _ in range(3_000)]


@pytest.fixture(scope="module")
def prose(words) -> list[str]:
    """600 documents of a few hundred words, frequent and rare ones."""
    dice = random.Random(4)
    weights = [1 / (rank + 3) for rank in range(len(words))]
    return [" ".join(dice.choices(words, weights, k=dice.randrange(40, 500))) for _ in range(600)]


@pytest.fixture(scope="module")
def model(prose, tmp_path_factory) -> Tokenizer:
    return train_tokenizer(prose, 700, tmp_path_factory.mktemp("model") / "m")


def change_words(text: str, words: list[str], share: float, seed: int) -> str:
    dice = random.Random(seed)
    changed = text.split(" ")
    for place in dice.sample(range(len(changed)), max(round(share * len(changed)), 1)):
        changed[place] = dice.choice(words)
    return " ".join(changed)


def compare(model, train: list[str], val: list[str], folder, workers: int = 1):
    def put(name: str, texts: list[str]):
        path = folder / name
        write_shard(path, np.concatenate(model.encode_documents(texts)))
        return path

    half = len(train) // 2
    shards = [put("x_train_000000.bin", train[:half]), put("x_train_000001.bin", train[half:])]
    held_out = [put("x_val_000000.bin", val[:7]), put("x_val_000001.bin", val[7:])]
    ratio = sum(len(text) for text in val) / sum(len(model.encode(text)) for text in val)
    return find_overlap(shards, held_out, bos_id=BOS, bytes_per_token=ratio, workers=workers)


def test_on_a_clean_split_nothing_is_found(prose, model, tmp_path):
    found = compare(model, prose[100:], prose[:100], tmp_path)
    assert found.pairs == () and found.exact == found.near == ()
    assert (found.validation_documents, found.train_documents) == (100, 500)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_document_in_a_hundred_is_found_with_its_place(prose, model, tmp_path, workers):
    train = [*prose[100:300], prose[42], *prose[300:]]
    found = compare(model, train, prose[:100], tmp_path, workers)
    assert found.exact == (42,) and found.near == ()
    (pair,) = found.pairs
    assert (pair.shard, pair.document, pair.similarity) == ("x_train_000000.bin", 200, 1.0)


def test_documents_with_5_percent_of_words_changed_are_found(prose, words, model, tmp_path):
    # All hundred at once: every one of them must be found, not only one in a hundred.
    near = [change_words(text, words, 0.05, seed) for seed, text in enumerate(prose[:100])]
    found = compare(model, prose[100:] + near, prose[:100], tmp_path)
    assert found.near == tuple(range(100)) and found.exact == ()
    assert min(pair.similarity for pair in found.pairs) > 0.5


def test_half_of_the_words_changed_is_another_document(prose, words, model, tmp_path):
    other = [change_words(text, words, 0.5, seed) for seed, text in enumerate(prose[:100])]
    assert compare(model, prose[100:] + other, prose[:100], tmp_path).pairs == ()


def test_short_documents_are_compared_exactly(model, tmp_path):
    val = ["ab", "", "cd ef", *(f"filler {i} words of text" for i in range(9))]
    found = compare(model, ["cd ef", "xy", "ab ", "more"], val, tmp_path)
    assert found.exact == (2,)


def test_signatures_agree_as_often_as_sets_do():
    # The slow and obvious way is Jaccard's own; 96 permutations, so 4 standard deviations are 0.2.
    dice = np.random.default_rng(1)
    for share in (0.2, 0.5, 0.8):
        common = dice.integers(0, 2**32, 2_000, dtype=np.uint32)
        count = round(2_000 * (1 - share) / share / 2)
        one, other = (
            np.concatenate([common, dice.integers(0, 2**32, count, dtype=np.uint32)])
            for _ in range(2)
        )
        exact = similarity(one, other)
        assert exact == pytest.approx(share, abs=0.01)
        marks = signatures(np.concatenate([one, other]), np.array([0, one.size]))
        assert (marks[0] == marks[1]).mean() == pytest.approx(exact, abs=0.2)


def test_a_document_in_pieces_has_the_signature_of_the_whole(monkeypatch):
    tokens = np.random.default_rng(2).integers(0, 900, 5_000).astype(np.uint16)
    whole = signatures(hash_runs(tokens, 8), np.zeros(1, dtype=np.int64))
    monkeypatch.setattr(overlap, "_TOKENS_AT_ONCE", 333)
    assert np.array_equal(overlap._signature_in_pieces(tokens, 8), whole)


def test_a_run_is_hashed_wherever_it_stands():
    tokens = np.random.default_rng(3).integers(0, 900, 100).astype(np.uint16)
    hashes = hash_runs(tokens, 8)
    assert hashes.size == 93 and hash_runs(tokens[:7], 8).size == 0
    assert hash_runs(tokens[40:48], 8)[0] == hashes[40]
    assert np.unique(hashes).size == 93


def test_a_build_leaves_out_what_is_like_validation(prose, words, model, tmp_path):
    near = [(f"n{i}", change_words(text, words, 0.05, i)) for i, text in enumerate(prose)]
    lines = [{"id": name, "text": text} for name, text in [*enumerate(prose), *near]]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    alike = []
    for keep_overlap in (True, False):
        job = Job(
            name="d",
            sources=(find_source(str(path)),),
            encoding=Encoding(),
            layout=Layout(validation_count=40, keep_overlap=keep_overlap),
            block_bytes=100_000,
        )
        built = build_dataset(job, model, tmp_path / f"d{keep_overlap}")
        found = find_overlap(built.train_shards, built.val_shards, bos_id=BOS, bytes_per_token=3.0)
        alike.append(len({(pair.shard, pair.document) for pair in found.pairs}))
    assert alike[0] > 30 and alike[1] == 0
    assert built.manifest.sources[0].left_out == {"like validation": alike[0]}
