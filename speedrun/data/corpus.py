"""Open a corpus by name or folder; `stdlib` is built on first use and kept in the user's cache.

Two processes may ask at once: one builds behind a file lock, the other waits. A killed builder
leaves only a hidden temporary folder, which the next one sweeps up.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from speedrun import settings
from speedrun.corpora.load import FOLDER, CorpusSpec, load_corpus
from speedrun.data import stdlib
from speedrun.data.dataset import Dataset, open_dataset
from speedrun.data.lock import hold
from speedrun.data.prepare import prepare_dataset
from speedrun.data.sources import Document
from speedrun.data.tokenizer import train_tokenizer
from speedrun.errors import DataError
from speedrun.files import write_atomic

Echo = Callable[[str], object]


def open_corpus(name: str | Path, *, echo: Echo = lambda line: None) -> Dataset:
    """Open a shipped corpus, a corpus file (`.toml`) or a dataset folder.

    `echo` is told, in one line each, what takes time.

    Raises
        ConfigError: a corpus file has a wrong key or value.
        DataError: nothing has this name, or what has it is missing, damaged or inconsistent.
        OutputError: the cache cannot be written.
    """
    shipped = settings.list_names(FOLDER)
    if str(name) in shipped or str(name).endswith(".toml"):
        spec = load_corpus(str(name))
        return _open_stdlib(spec, echo) if spec.kind == "stdlib" else _open_golf(spec)
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(
            f"no corpus and no folder is called {str(name)!r}; corpora are {', '.join(shipped)}"
        )
    return open_dataset(folder, published=_published_as(folder))


def find_folder(
    name: str, against: str = "", *, echo: Echo = lambda line: None
) -> tuple[Path, CorpusSpec | None]:
    """The folder of a corpus and what it should be, without looking into it.

    A corpus that is built here is built, if need be. `against` names the corpus that a folder
    should be, where its own name does not say it.

    Raises
        ConfigError: a corpus file has a wrong key or value.
        DataError: nothing has this name, or it is not here.
    """
    spec = load_corpus(against) if against else None
    shipped = settings.list_names(FOLDER)
    if name in shipped or name.endswith(".toml"):
        own = load_corpus(name)
        built = open_corpus(name, echo=echo).folder if own.kind == "stdlib" else None
        return built or _golf_folder(own), spec or own
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(
            f"no corpus and no folder is called {name!r}; corpora are {', '.join(shipped)}"
        )
    return folder, spec or _published_as(folder)


def _published_as(folder: Path) -> CorpusSpec | None:
    """The shipped corpus whose folder has this name."""
    specs = map(load_corpus, settings.list_names(FOLDER))
    return next((spec for spec in specs if spec.folder == folder.resolve().name), None)


def cache_folder() -> Path:
    """`SPEEDRUN_CACHE`, or `speedrun` below `XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("SPEEDRUN_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "speedrun"


def _open_golf(spec: CorpusSpec) -> Dataset:
    return open_dataset(_golf_folder(spec), published=spec)


def data_root() -> Path:
    """Where published corpora lie: `SPEEDRUN_DATA`, or `data` below the working folder."""
    return Path(os.environ.get("SPEEDRUN_DATA") or "data")


def _golf_folder(spec: CorpusSpec) -> Path:
    root = data_root()
    places = [root / "datasets" / spec.folder, root / spec.folder]
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(map(str, places))
    raise DataError(f"corpus {spec.name} is not here: looked for {looked}; {spec.how_to_get}")


def _open_stdlib(spec: CorpusSpec, echo: Echo) -> Dataset:
    library, cache = stdlib.library_folder(), cache_folder()
    state = f"{stdlib.file_state(library)} {spec.vocab_size} {spec.validation_frac}"
    if dataset := _open_built(cache, spec, state, echo):
        return dataset
    remedy = "set SPEEDRUN_CACHE to a folder that you may write to"
    with hold(cache / f"{spec.name}.lock", echo, remedy=remedy):
        # Somebody else may have built it while we waited.
        if dataset := _open_built(cache, spec, state, echo):
            return dataset
        for orphan in cache.glob(f".{spec.name}-*.tmp"):
            shutil.rmtree(orphan, ignore_errors=True)
        echo(f"{spec.name}: reading {library}")
        documents = stdlib.read_documents(library)
        fingerprint = stdlib.fingerprint(documents)
        folder = cache / f"{spec.name}-{spec.vocab_size}-{fingerprint[:16]}"
        if not _is_sound(folder, echo):
            shutil.rmtree(folder, ignore_errors=True)
            _build(spec, documents, fingerprint, folder, echo)
        memo = {"state": state, "folder": folder.name}
        write_atomic(_memo_path(cache, spec), json.dumps(memo).encode())
        return open_dataset(folder)


def _build(
    spec: CorpusSpec, documents: list[Document], fingerprint: str, folder: Path, echo: Echo
) -> None:
    def is_validation(name: str) -> bool:
        return stdlib.is_validation(name, validation_frac=spec.validation_frac)

    echo(f"{spec.name}: training a tokenizer of {spec.vocab_size:,} pieces")
    model = folder.with_name(f".{folder.name}.model.tmp")
    try:
        # The tokenizer, too, must not have seen the validation text.
        texts = (text for name, text in documents if not is_validation(name))
        tokenizer = train_tokenizer(texts, spec.vocab_size, model)
    finally:
        model.unlink(missing_ok=True)
    echo(f"{spec.name}: tokenising {len(documents):,} documents")
    dataset = prepare_dataset(
        documents,
        tokenizer,
        folder,
        name=spec.name,
        is_validation=is_validation,
        source=fingerprint,
    )
    assert dataset.manifest is not None
    echo(
        f"{spec.name}: {dataset.manifest.train_tokens:,} training tokens, "
        f"{dataset.val_raw_bytes:,} bytes of validation text, kept in {folder}"
    )


def _open_built(cache: Path, spec: CorpusSpec, state: str, echo: Echo) -> Dataset | None:
    """What an earlier run built from the same files, if it is sound."""
    try:
        memo = json.loads(_memo_path(cache, spec).read_bytes())
        if memo["state"] != state:
            return None
        folder = cache / Path(memo["folder"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a memo is only a short cut: without one the corpus is read again
    return open_dataset(folder) if _is_sound(folder, echo) else None


def _is_sound(folder: Path, echo: Echo) -> bool:
    if not folder.is_dir():
        return False
    try:
        open_dataset(folder)
    except DataError as error:
        echo(f"building again: {error}")
        return False
    return True


def _memo_path(cache: Path, spec: CorpusSpec) -> Path:
    return cache / f"{spec.name}.json"
