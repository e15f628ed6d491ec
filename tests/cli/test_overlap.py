"""Protects scores from text that was trained on: a run refuses it, or says so in its ledger."""

from __future__ import annotations

import json

import pytest

from speedrun.clock import read_ledger
from speedrun.data.prepare import prepare_dataset
from speedrun.data.shards import open_shard
from speedrun.data.tokenizer import Tokenizer


@pytest.fixture
def dirty(contest, tmp_path, monkeypatch):
    """The contest's documents, with a validation text among the training documents."""
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path / "cache"))
    tokenizer = Tokenizer.load(contest.data / "tokenizer.model")
    tokens = open_shard(contest.data / "shard_train_000000.bin")
    text = tokenizer.decode(token for token in tokens.tolist() if token != tokenizer.bos_id)
    held_out = (contest.data / "shard_val_000000.raw").read_text("utf-8")
    documents = [("train", text), ("copy", held_out), ("val", held_out)]
    prepare_dataset(
        documents, tokenizer, tmp_path / "dirty", name="dirty", is_validation="val".__eq__
    )
    return tmp_path / "dirty"


def test_a_run_on_an_overlap_is_refused_unless_it_is_allowed(call, contest, dirty, tmp_path):
    out = tmp_path / "runs"
    words = ("run", "--track", contest.track, "--data", dirty, "--out", out, "--json")
    found = call(*words)
    assert found.code == 2 and not out.exists()
    assert "1 of 1 validation documents" in found.error() and "--allow-overlap" in found.err
    allowed = call(*words, "--allow-overlap")
    folder = out / json.loads(allowed.out)["folder"].rpartition("/")[2]
    (phase,) = [each for each in read_ledger(folder / "ledger.jsonl") if each.name == "data"]
    assert phase.details["exact"] == "FAIL" and "--allow-overlap" in phase.details["allowed"]
    assert not phase.on_budget


def test_a_clean_run_says_so_in_its_ledger(runs):
    for folder in (path for path in runs.iterdir() if path.is_dir()):
        first = read_ledger(folder / "ledger.jsonl")[0]
        assert first.name == "data" and first.details["exact"] == "PASS"
