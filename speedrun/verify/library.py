"""A stand-in for Python's standard library: what programs import, without its text.

On the `pocket` track the validation text is the library's own source. So a judged process gets a
copy that holds compiled modules only, without docstrings, comments and assertions; tests, tools and
help topics are left out. Of the validation documents themselves only those stay, compiled, that
Python and the frameworks import; the others raise an ImportError that says why.

Copies are made once and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import marshal
import os
import shutil
import site
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import CodeType

from speedrun.data import stdlib
from speedrun.data.corpus import cache_folder
from speedrun.data.dataset import Dataset
from speedrun.errors import OutputError, SubmissionError
from speedrun.files import atomic_path, write_atomic

EMPTY = "site-packages"
"""A folder of the copy that is always empty: a place for the real one, and a mask for others."""
FRAMEWORKS = (
    *("numpy", "torch", "zstandard", "brotli", "sentencepiece"),
    # What torch imports only when it is used.
    *("torch._dynamo", "torch._inductor.compile_fx", "multiprocessing.spawn", "ctypes.util"),
)
"""What a predictor may count on, and with it a part of the library."""
TOOLS = ("pip", "virtualenv", "distlib", "jedi", "mypy", "speedrun")
"""Packages that no predictor has a use for, with parts of the library inside. And this one: what it
could lend would not be counted."""
_LAYOUT = 1
"""Goes up when the same library must give another copy."""
# Anywhere in a path: tests, tools with windows, texts, and what is put in place by others.
_LEFT_OUT = {
    *("test", "tests", "idle_test", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "ensurepip"),
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__"),
}
_MOUNT_POINTS = ("site-packages", "dist-packages", "lib-dynload")
_TRIAL = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
print(json.dumps([getattr(module, "__file__", None) for module in [*sys.modules.values()]]))
"""


def library_documents(dataset: Dataset) -> list[str]:
    """Validation documents that are files or topics of this Python's library.

    Any data set may hold some, and the sandbox shows the library, so they have to be hidden there.
    """
    if dataset.manifest is None:
        return []
    library = stdlib.library_folder()
    names = [
        name
        for shard in dataset.manifest.shards
        if shard.raw is not None
        for name in shard.raw.document_ids
    ]
    return [
        name
        for name in names
        if name.startswith("pydoc/")
        or (PurePosixPath(name).suffix == ".py" and (library / name).is_file())
    ]


def stand_in(hidden_documents: Sequence[str] = ()) -> Path:
    """The folder to show in place of the running Python's library.

    Args:
        hidden_documents: Ids of documents of the corpus `stdlib` (see `data.stdlib`) whose text
            must not be had. Files of the same text are hidden with them; other ids do no harm.

    Raises
        DataError: this Python ships no library source to copy.
        OutputError: the cache cannot be written.
        SubmissionError: it cannot be found out what the frameworks import.
    """
    library = stdlib.library_folder()
    state = [_LAYOUT, sys.version, stdlib.file_state(library)]
    plain = cache_folder() / f"library-{_digest(state)}"
    if not plain.is_dir():
        _keep(plain, lambda target: _compile_all(library, target))
    ids = sorted({name for name in hidden_documents if name.endswith(".py")})
    if not ids:
        return plain
    state += [_versions(), ids]
    hiding = plain.with_name(f"library-{_digest(state)}")
    if not hiding.is_dir():
        imported = _imported()
        hidden = {n for n in _of_same_text(library, ids) if str(library / n) not in imported}
        _keep(hiding, lambda target: _copy_without(plain, target, hidden))
    return hiding


def package_folders() -> list[Path]:
    """Folders with installed packages that a `python -I` here would use."""
    return [path for name in site.getsitepackages() if (path := Path(name)).is_dir()]


def twins(hidden_documents: Sequence[str]) -> list[Path]:
    """Files of installed packages that say much of what a hidden document says.

    Other versions of library modules are installed under other names: `setuptools._distutils` is
    one. A twin has the file name of a document and a quarter of its long lines, and is not imported
    by the frameworks, which have to work.
    """
    library = stdlib.library_folder()
    ids = sorted({name for name in hidden_documents if name.endswith(".py")})
    if not ids:
        return []
    folders = [(str(folder), folder.stat().st_mtime_ns) for folder in package_folders()]
    state = [_LAYOUT, sys.version, stdlib.file_state(library), ids, folders]
    memo = cache_folder() / f"twins-{_digest(state)}.json"
    with suppress(OSError, ValueError):
        return [Path(name) for name in json.loads(memo.read_bytes())]
    said: dict[str, list[set[bytes]]] = {}
    for name in ids:
        with suppress(OSError):
            if lines := _long_lines(library / name):
                said.setdefault(Path(name).name, []).append(lines)
    candidates = (path for folder in package_folders() for path in _python_files(folder))
    found = {
        str(path)
        for path in candidates
        if any(_is_twin(_long_lines(path), lines) for lines in said.get(path.name, ()))
    }
    found -= _imported() if found else set()
    write_atomic(memo, json.dumps(sorted(found)).encode())
    return [Path(name) for name in sorted(found)]


def _python_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = sorted(set(folders) - {*TOOLS})
        yield from (Path(place, name) for name in files if name.endswith(".py"))


def _long_lines(path: Path) -> set[bytes]:
    return {line.strip() for line in path.read_bytes().splitlines() if len(line.strip()) >= 20}


def _is_twin(lines: set[bytes], said: set[bytes]) -> bool:
    shared = len(lines & said)
    return shared >= 5 and 4 * shared >= len(said)


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _versions() -> list[str]:
    """Of the frameworks that are installed: others import other modules."""
    versions = []
    for name in FRAMEWORKS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return versions


def _keep(folder: Path, build: Callable[[Path], None]) -> None:
    try:
        with atomic_path(folder) as temporary:
            build(temporary)
    except OutputError:
        if not folder.is_dir():  # else another process was quicker
            raise


def _modules(library: Path) -> Iterator[str]:
    """Relative paths of what is copied."""
    for place, folders, files in os.walk(library):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        prefix = Path(place).relative_to(library)
        yield from (str(prefix / name) for name in sorted(files) if name.endswith(".py"))


def _compile_all(library: Path, target: Path) -> None:
    for name in _modules(library):
        source = (library / name).read_bytes()
        with warnings.catch_warnings(), suppress(SyntaxError):  # samples of other Pythons
            warnings.simplefilter("ignore")
            code = compile(source, str(library / name), "exec", dont_inherit=True, optimize=2)
            _write_compiled(target / name, code)
    for name in _MOUNT_POINTS:
        _make_folder(target / name)


def _write_compiled(path: Path, code: CodeType) -> None:
    """Write `path` as a module without source: hash-based, never checked, with no hash to test."""
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
    _make_folder(path.parent)
    compiled = path.with_suffix(".pyc")
    compiled.write_bytes(header + marshal.dumps(code))
    compiled.chmod(0o644)  # the judged process may be another user


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _of_same_text(library: Path, ids: Sequence[str]) -> set[str]:
    """Modules whose text is that of a document: of equal texts a corpus names only the first."""
    texts = set()
    for name in ids:
        with suppress(OSError):
            texts.add((library / name).read_bytes())
    return {name for name in _modules(library) if (library / name).read_bytes() in texts}


def _imported() -> set[str]:
    """Paths of modules that Python and the frameworks import, found out by importing."""
    memo = cache_folder() / f"imported-{_digest([sys.version, sys.prefix, *_versions()])}.json"
    with suppress(OSError, ValueError):
        return set(json.loads(memo.read_bytes()))
    command = [sys.executable, "-I", "-c", _TRIAL, *FRAMEWORKS]
    done = subprocess.run(command, capture_output=True, timeout=600, check=False)
    try:
        found = {file for file in json.loads(done.stdout.splitlines()[-1]) if file}
    except (ValueError, IndexError):
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise SubmissionError(
            f"cannot find out what the frameworks import: {' '.join(words) or done.returncode}; "
            f"try `{sys.executable} -c 'import torch'`"
        ) from None
    write_atomic(memo, json.dumps(sorted(found)).encode())
    return found


def _copy_without(plain: Path, target: Path, hidden: set[str]) -> None:
    def link(source: str, destination: str) -> None:
        try:
            os.link(source, destination)
        except OSError:
            shutil.copy2(source, destination)

    shutil.copytree(plain, target, copy_function=link)
    for name in sorted(hidden):
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        reason = f"{module} is validation text of this contest, so a predictor cannot import it"
        (target / name).with_suffix(".pyc").unlink()
        _write_compiled(target / name, compile(f"raise ImportError({reason!r})", module, "exec"))
