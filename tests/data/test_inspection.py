"""What is shown of a dataset is what is in it."""

from __future__ import annotations

import numpy as np
import pytest

from speedrun.data import inspection
from speedrun.data.dataset import Dataset
from speedrun.data.inspection import frequent_tokens, measure_lengths, read_documents
from speedrun.data.prepare import prepare_dataset


@pytest.fixture
def dataset(documents, tokenizer, tmp_path) -> Dataset:
    return prepare_dataset(
        documents, tokenizer, tmp_path / "d", name="d", validation_count=20, shard_tokens=700
    )


def test_lengths_are_those_of_the_encoded_documents(dataset, documents, tokenizer, monkeypatch):
    monkeypatch.setattr(inspection, "_TOKENS_AT_ONCE", 100)  # documents lie across the pieces
    shards = [*dataset.train_shards, *dataset.val_shards]
    sizes = sorted(tokens.size for tokens in tokenizer.encode_documents([t for _, t in documents]))
    found = measure_lengths(shards, tokenizer.bos_id)
    assert (found.documents, found.tokens) == (100, sum(sizes))
    assert found.quantiles["min"] == sizes[0] and found.quantiles["max"] == sizes[-1]
    assert abs(found.quantiles["median"] - np.median(sizes)) <= 20
    before = 0
    for limit, count in found.histogram:
        assert sum(before <= size < limit for size in sizes) == count
        before = limit


def test_documents_are_numbered_across_shards(dataset, tokenizer):
    whole = list(read_documents(dataset.train_shards, tokenizer, first=0, count=1_000))
    assert [number for number, _, _ in whole] == list(range(80))
    assert len(dataset.train_shards) > 2
    part = list(read_documents(dataset.train_shards, tokenizer, first=17, count=5))
    assert [text for _, _, text in part] == [text for _, _, text in whole[17:22]]
    assert list(read_documents(dataset.train_shards, tokenizer, first=900, count=5)) == []


def test_shares_of_tokens_are_counted(dataset, tokenizer):
    tokens = dataset.val_tokens()
    found = frequent_tokens(dataset.val_shards, tokenizer, count=5)
    assert len(found) == 5 and found == sorted(found, key=lambda each: -each[2])
    for token, text, share in found:
        assert share == pytest.approx((tokens == token).mean())
        assert text == tokenizer.decode([token])
