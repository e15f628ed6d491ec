"""A hundred small documents, a tokenizer trained on them, and a library of a few real files."""

import os
import random
import shutil
from pathlib import Path

import pytest

from speedrun.data.stdlib import library_folder
from speedrun.data.tokenizer import Tokenizer, train_tokenizer

PHRASES = (
    "def ",
    "return ",
    "self.",
    "assertEqual(",
    "for x in range(12345):",
    "width",
    " naïve",
    "None if not",
    "the words of and ",
    "())",
)


@pytest.fixture(scope="session")
def documents() -> list[tuple[str, str]]:
    dice = random.Random(7)
    return [
        (
            f"doc{index}",
            "".join(
                "    " * dice.randrange(4) + "".join(dice.choices(PHRASES, k=6)) + "\n"
                for _ in range(dice.randrange(1, 30))
            ),
        )
        for index in range(100)
    ]


@pytest.fixture(scope="session")
def tokenizer(documents, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    return train_tokenizer([text for _, text in documents], 400, path)


@pytest.fixture(scope="session")
def small_library(tmp_path_factory) -> Path:
    """Parts of the standard library as a library of its own, with things that must be left out."""
    folder = tmp_path_factory.mktemp("library")
    for part in ("json", "email", "http", "asyncio", "logging"):
        shutil.copytree(
            library_folder() / part,
            folder / part,
            ignore=shutil.ignore_patterns("__pycache__", "test*"),
        )
    for name, content in {
        "site-packages/foreign.py": b"foreign = 1\n",
        "json/__pycache__/cached.py": b"cached = 1\n",
        "_sysconfigdata_x.py": b"home = '/somewhere'\n",
        "latin.py": b"# caf\xe9\n",
        "empty.py": b"",
        "twin_a.py": b"twin = 1\n",
        "twin_b.py": b"twin = 1\n",
        "notes.txt": b"no source\n",
        "pydoc_data/topics.py": b"topics = {'if': 'The if statement\\n', 'for': 'Loops'}\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data: `shared/data` in a folder above this one, or what SPEEDRUN_SHARED names."""
    named = os.environ.get("SPEEDRUN_SHARED")
    places = [Path(named)] if named else [p / "shared" / "data" for p in Path(__file__).parents]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no shared/data above the tests, and SPEEDRUN_SHARED is not set")
