"""Documents of the running Python's standard library: its source files and its help topics.

Text that every machine already has, so a first run needs no download. Other Python versions have
other text; the fingerprint tells them apart.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from speedrun.data.sources import Document
from speedrun.errors import DataError

BUILDER_VERSION = 1
"""Goes up when the same library must give another corpus."""
_TOPICS = "pydoc_data/topics.py"
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
# Files that name the machine they were built on, and samples in odd encodings and line ends.
_LEFT_OUT = ("_sysconfigdata", "lib2to3/tests/data/", "test/encoded_modules/", "config-")


def library_folder() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def library_files(folder: Path) -> list[str]:
    """Relative POSIX paths of the source files below `folder`, sorted.

    Raises
        DataError: there are none.
    """
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _FOREIGN]
        prefix = Path(place).relative_to(folder).as_posix().removeprefix(".")
        names += [f"{prefix}/{name}".lstrip("/") for name in files if name.endswith(".py")]
    names = sorted(name for name in names if not name.startswith(_LEFT_OUT))
    if not names:
        raise DataError(
            f"no Python source below {folder}; this Python ships none (an embedded or zipped one), "
            "so name a dataset folder instead of the corpus 'stdlib'"
        )
    return names


def read_documents(folder: Path) -> list[Document]:
    """Every text of the library once, in the order of the SHA-256 of its id.

    The id is the relative path, or `pydoc/<topic>`. Files that are not UTF-8 are left out, and of
    equal texts all but the first by name.

    Raises
        DataError: there is no source, or it cannot be read.
    """
    texts: dict[str, str] = {}
    for name, text in sorted(_read_all(folder)):
        texts.setdefault(text, name)
    texts.pop("", None)
    documents = [(name, text) for text, name in texts.items()]
    return sorted(documents, key=lambda document: id_hash(document[0]))


def fingerprint(documents: list[Document]) -> str:
    """SHA-256 over ids, texts and the builder's version."""
    digest = hashlib.sha256(f"stdlib {BUILDER_VERSION}\n".encode())
    for name, text in sorted(documents):
        digest.update(f"{hashlib.sha256(text.encode()).hexdigest()} {name}\n".encode())
    return digest.hexdigest()


def file_state(folder: Path) -> str:
    """A hash of names, sizes and times: equal states are taken for equal text without reading it.

    Raises
        DataError: there is no source.
    """
    digest = hashlib.sha256(f"{BUILDER_VERSION} {folder}\n".encode())
    for name in library_files(folder):
        stat = os.stat(f"{folder}/{name}")  # noqa: PTH116 - 1,800 times, on every start
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def id_hash(name: str) -> bytes:
    """SHA-256 of a document's id: decides its split and its place."""
    return hashlib.sha256(name.encode()).digest()


def is_validation(name: str, *, validation_frac: float) -> bool:
    """Whether an id falls into the share of the hash range that is validation."""
    return int.from_bytes(id_hash(name)[:8], "big") < validation_frac * 2**64


def _read_all(folder: Path) -> Iterator[Document]:
    for name in library_files(folder):
        try:
            text = (folder / name).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error.strerror}") from error
        if name == _TOPICS:
            yield from _topics(text)
        else:
            yield name, text


def _topics(source: str) -> Iterator[Document]:
    """Help topics are one dict of strings; read as data, for the library may not be our own."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for topic, text in ast.literal_eval(node.value).items():
                yield f"pydoc/{topic}", text
