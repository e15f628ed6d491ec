"""The stdlib corpus is built once, by one process, whole; afterwards it only opens."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speedrun.data import corpus, stdlib
from speedrun.data.corpus import cache_folder, open_corpus
from speedrun.data.prepare import prepare_dataset
from speedrun.errors import DataError, OutputError

ROOT = Path(__file__).resolve().parents[2]

OPEN = """
import sys
from pathlib import Path
from speedrun.data import corpus, stdlib
stdlib.library_folder = lambda: Path(sys.argv[1])
print(corpus.open_corpus("stdlib", echo=print).fingerprint)
"""
HANG = """
import sys, time
from pathlib import Path
from speedrun.data import corpus, prepare, stdlib
stdlib.library_folder = lambda: Path(sys.argv[1])
def hang(*_, **__):
    print("half built", flush=True)
    time.sleep(600)
prepare._manifest = hang
corpus.open_corpus("stdlib")
"""


@pytest.fixture
def cache(tmp_path, monkeypatch, small_library) -> Path:
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stdlib, "library_folder", lambda: small_library)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(tmp_path_factory, small_library) -> Path:
    """A cache that somebody built before."""
    cache = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEEDRUN_CACHE", str(cache))
        patch.setattr(stdlib, "library_folder", lambda: small_library)
        open_corpus("stdlib")
    return cache


def start(program: str, library: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(library)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_the_built_corpus_is_sound_and_lossless(cache, built):
    shutil.copytree(built, cache)
    dataset = open_corpus("stdlib")
    dataset.verify_validation()
    assert dataset.manifest.lossless and dataset.vocab_size == 1024
    assert dataset.val_raw_bytes == dataset.val_token_bytes > 0


def test_a_second_start_reads_no_library(cache, built, monkeypatch):
    shutil.copytree(built, cache)
    monkeypatch.setattr(stdlib, "read_documents", lambda folder: pytest.fail("read the library"))
    lines = []
    open_corpus("stdlib", echo=lines.append)
    assert lines == []


def test_a_touched_library_is_read_but_not_built_again(cache, built, monkeypatch):
    shutil.copytree(built, cache)
    (cache / "stdlib.json").unlink()
    monkeypatch.setattr(corpus, "_build", lambda *_: pytest.fail("built again"))
    open_corpus("stdlib")
    assert (cache / "stdlib.json").exists()


@pytest.mark.parametrize("damage", ["manifest.json", "tokenizer.model"])
def test_a_damaged_cache_is_built_again(cache, built, damage):
    shutil.copytree(built, cache)
    victim = next(cache.glob(f"stdlib-*/{damage}"))
    victim.write_bytes(victim.read_bytes()[:-3])
    lines = []
    open_corpus("stdlib", echo=lines.append)
    assert damage in lines[0] and any("training a tokenizer" in line for line in lines)


@pytest.mark.parametrize("memo", [b"", b"[]", b'{"state": 1}', b"\xff"])
def test_a_damaged_memo_is_ignored(cache, built, memo):
    shutil.copytree(built, cache)
    (cache / "stdlib.json").write_bytes(memo)
    open_corpus("stdlib")


def test_two_processes_build_once(cache, small_library):
    processes = [start(OPEN, small_library) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert "".join(outputs).count("training a tokenizer") == 1
    left = sorted(path.name for path in cache.iterdir() if not path.is_dir())
    assert left == ["stdlib.json", "stdlib.lock"]


def test_a_killed_builder_leaves_nothing_that_counts(cache, small_library):
    process = start(HANG, small_library)
    try:
        assert process.stdout.readline() == "half built\n"
    finally:
        process.kill()
        process.communicate()
    assert [path.name for path in cache.iterdir() if path.is_dir()]  # its temporary folder
    dataset = open_corpus("stdlib")
    dataset.verify_validation()
    assert [path for path in cache.iterdir() if path.is_dir()] == [dataset.folder]


def test_an_unwritable_cache_names_the_way_out(cache, tmp_path):
    cache.write_bytes(b"a file")
    with pytest.raises(OutputError, match=r"cannot write .*cache.*set SPEEDRUN_CACHE"):
        open_corpus("stdlib")


def test_a_full_disk_leaves_no_corpus(cache, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        open_corpus("stdlib")
    assert [path.name for path in cache.iterdir()] == ["stdlib.lock"]


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    for name in ("SPEEDRUN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "speedrun"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "speedrun"
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_dataset_folder_opens_by_path(documents, tokenizer, tmp_path):
    prepare_dataset(documents, tokenizer, tmp_path / "d", name="mine", validation_count=5)
    assert open_corpus(tmp_path / "d").name == "mine"


def test_a_golf_corpus_that_is_not_here_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDRUN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"golf-sp1024 is not here: looked for .*fetch"):
        open_corpus("golf-sp1024")


def test_an_unknown_name_lists_the_corpora():
    with pytest.raises(DataError, match=r"'nope'; corpora are golf-byte260, .*stdlib"):
        open_corpus("nope")
