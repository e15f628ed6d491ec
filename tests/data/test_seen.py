"""What is known of a dataset's overlap is asked once, and kept."""

from __future__ import annotations

import numpy as np
import pytest

from speedrun.data import seen
from speedrun.data.check import check_folder
from speedrun.data.dataset import open_dataset
from speedrun.data.prepare import prepare_dataset
from speedrun.data.seen import note_overlap, remember_overlap
from speedrun.data.shards import open_shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dirty(documents, tokenizer, tmp_path):
    """A dataset with one validation document in training, too."""
    twice = [*documents, ("again", documents[0][1])]
    folder = tmp_path / "d"
    prepare_dataset(twice, tokenizer, folder, name="d", is_validation="doc0".__eq__)
    return open_dataset(folder)


def test_it_is_compared_once_and_then_known(dirty, cache, monkeypatch):
    note = note_overlap(dirty, allows_near=False)
    assert note.exact == "FAIL" and "1 of 1 validation documents" in note.found
    assert "'doc0'" in note.found
    monkeypatch.setattr(seen, "find_overlap", lambda *_, **__: pytest.fail("compared again"))
    assert note_overlap(dirty, allows_near=False) == note
    for path in (cache / "overlap").iterdir():
        path.write_text("{")
    monkeypatch.undo()
    monkeypatch.setenv("SPEEDRUN_CACHE", str(cache))
    assert note_overlap(dirty, allows_near=False) == note


def test_a_check_is_remembered_for_the_runs(dirty, monkeypatch):
    remember_overlap(check_folder(dirty.folder))
    monkeypatch.setattr(seen, "find_overlap", lambda *_, **__: pytest.fail("compared again"))
    assert note_overlap(dirty, allows_near=False).exact == "FAIL"


def test_shards_too_large_to_compare_now_are_undecided(dirty, cache, monkeypatch):
    monkeypatch.setattr(seen, "MAX_BYTES_NOW", 100)
    note = note_overlap(dirty, allows_near=False)
    assert note.exact == note.near == "UNDECIDED" and "speedrun data check" in note.found
    assert not cache.exists()


def test_a_check_that_could_not_decide_is_not_remembered(dirty, cache):
    path = dirty.train_shards[0]
    tokens = np.array(open_shard(path))
    path.write_bytes(path.read_bytes()[: tokens.size])
    remember_overlap(check_folder(dirty.folder))
    assert not cache.exists()
