"""The standard library as documents: what is in, what is out, and when it counts as changed."""

import os
import shutil

import pytest

from speedrun.data import stdlib
from speedrun.errors import DataError


def test_documents_are_source_and_topics_once_each(small_library):
    documents = dict(stdlib.read_documents(small_library))
    assert documents["pydoc/if"] == "The if statement\n"
    assert "json/decoder.py" in documents and "twin_a.py" in documents
    absent = {
        "site-packages/foreign.py",
        "json/__pycache__/cached.py",
        "_sysconfigdata_x.py",
        "latin.py",
        "empty.py",
        "twin_b.py",
        "notes.txt",
        "pydoc_data/topics.py",
    }
    assert not absent & set(documents)


def test_the_order_is_that_of_the_hashed_ids(small_library):
    names = [name for name, _ in stdlib.read_documents(small_library)]
    assert names == sorted(names, key=stdlib.id_hash) and names != sorted(names)


def test_the_split_is_a_function_of_the_id():
    names = [f"module{index}.py" for index in range(4_000)]
    held_out = [name for name in names if stdlib.is_validation(name, validation_frac=0.1)]
    assert 330 < len(held_out) < 470
    wider = {name for name in names if stdlib.is_validation(name, validation_frac=0.2)}
    assert set(held_out) < wider


def test_the_fingerprint_follows_texts_and_ids_but_not_their_order():
    documents = [("a", "1"), ("b", "2")]
    same = stdlib.fingerprint(documents[::-1])
    assert stdlib.fingerprint(documents) == same
    others = [[("a", "1")], [("a", "1"), ("b", "3")], [("a", "1"), ("c", "2")]]
    assert len({same, *map(stdlib.fingerprint, others)}) == 4


def test_the_state_changes_when_a_file_does(small_library, tmp_path):
    folder = tmp_path / "library"
    shutil.copytree(small_library, folder)
    before = stdlib.file_state(folder)
    assert stdlib.file_state(folder) == before
    os.utime(folder / "twin_a.py", ns=(1, 1))
    touched = stdlib.file_state(folder)
    (folder / "new.py").write_text("new = 1\n")
    assert len({before, touched, stdlib.file_state(folder)}) == 3


def test_a_python_without_source_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no Python source below"):
        stdlib.library_files(tmp_path)


def test_the_running_library_is_large_enough():
    assert len(stdlib.library_files(stdlib.library_folder())) > 500
