"""Published shards from the Hugging Face hub: listed, checked for room, fetched, hashed.

The repository's own `manifest.json` says which files a variant has; the hub says how large they are
and, for most, their hash. Each file is held against that before it gets its name, and what was
found is written beside the shards (`data.fetched`), for `data check` and for work without network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from speedrun.corpora.load import CorpusSpec
from speedrun.data.fetched import FETCHED, FetchedFile, read_fetched, write_fetched
from speedrun.data.lock import hold
from speedrun.data.shards import open_shard
from speedrun.errors import DataError, OutputError
from speedrun.files import sha256_file

Progress = Callable[[str, int, int], object]
DEFAULT_SHARDS = 80
"""Training shards that the field's own script takes: 8 billion tokens."""
_SPARE_BYTES = 200_000_000
_TRIES = 4


@dataclass(frozen=True, slots=True)
class _Remote:
    """A file as the hub lists it."""

    path: str
    size: int
    source_hash: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def fetch_corpus(
    spec: CorpusSpec,
    root: Path,
    *,
    shards: int | None = None,
    offline: bool = False,
    workers: int = 8,
    endpoint: str | None = None,
    echo: Callable[[str], object] = lambda line: None,
    progress: Progress = lambda what, done, total: None,
) -> Path:
    """Fetch a corpus below `root`, but for what is here and whole; returns its folder.

    All validation shards, the first `shards` training shards and the tokenizer. `offline` only
    looks whether that is here, hash by hash. `endpoint` is a mirror; by default HF_ENDPOINT.

    Raises
        DataError: the repository, variant or a file is not there, more shards are asked for than it
            has, or a file is damaged each time it comes.
        OutputError: there is no room, or `root` cannot be written.
    """
    folder = root / "datasets" / spec.folder
    tokenizer = root / "tokenizers" / spec.tokenizer
    if offline:
        _check_offline(folder, tokenizer, shards, progress)
        return folder
    if not spec.repo:
        raise DataError(f"corpus {spec.name} names no repository; give --repo OWNER/NAME")
    with hold(folder / ".lock", echo, remedy="choose a folder that you may write to"):
        hub = _Hub(spec.repo, folder / ".fetch", endpoint)
        manifest = hub.read_manifest(spec.prefix)
        wanted = _choose(hub, spec, manifest, shards)
        recorded = {
            name: entry
            for name, entry in read_fetched(folder).items()
            if _is_here(_place(name, folder, tokenizer), entry)
        }
        missing = [file for file in wanted if not _is_recorded(file, recorded.get(file.name))]
        _check_room(folder, missing)
        echo(
            f"{spec.name}: {len(wanted):,} files, {sum(f.size for f in wanted):,} bytes; "
            f"{len(missing):,} to fetch from {spec.repo} at {hub.revision[:12]}"
        )
        _fetch_all(hub, missing, recorded, folder, tokenizer, workers, progress)
        shutil.rmtree(folder / ".fetch", ignore_errors=True)
        _compare_stats(folder, wanted, manifest, spec)
    (folder / ".lock").unlink(missing_ok=True)
    return folder


class _Hub:
    """One repository at one commit, and where its files arrive."""

    def __init__(self, repo: str, inbox: Path, endpoint: str | None) -> None:
        try:
            import huggingface_hub
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ImportError:
            raise DataError("fetching needs huggingface-hub; install it with pip") from None
        disable_progress_bars()  # ours shows all files together
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self._library = huggingface_hub
        self._api = huggingface_hub.HfApi(endpoint=endpoint)
        self._endpoint = endpoint
        self.repo, self.inbox = repo, inbox
        with self._translated(repo):
            self.revision = str(self._api.dataset_info(repo).sha)

    def read_manifest(self, prefix: str) -> dict[str, Any]:
        """The repository's `manifest.json`."""
        path = _join(prefix, "manifest.json")
        try:
            found: Any = json.loads(self.download(path).read_bytes())
            if not isinstance(found["datasets"], list):
                raise TypeError("datasets is no list")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{self.repo}: {path} is damaged: {error!r}") from error
        return dict(found)

    def list_folder(self, path: str) -> Iterator[_Remote]:
        """Files of one folder, with sizes and hashes."""
        with self._translated(path):
            for entry in self._api.list_repo_tree(
                self.repo, path, revision=self.revision, repo_type="dataset"
            ):
                if isinstance(entry, self._library.hf_api.RepoFile):
                    lfs = entry.lfs
                    own = f"sha256:{lfs.sha256}" if lfs else f"git:{entry.blob_id}"
                    yield _Remote(entry.path, int(entry.size), own)

    def download(self, path: str, on_bytes: Callable[[int], object] | None = None) -> Path:
        """Bring one file into the inbox, going on where an earlier try ended.

        Dropped connections and 429 with Retry-After are waited for by the library.
        """
        with self._translated(path):
            return Path(
                self._library.hf_hub_download(
                    self.repo,
                    path,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=self.inbox,
                    endpoint=self._endpoint,
                    tqdm_class=_bar_class(on_bytes),
                )
            )

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        from huggingface_hub import errors

        try:
            yield
        except (errors.EntryNotFoundError, errors.RepositoryNotFoundError) as error:
            raise DataError(
                f"{self.repo} has no {what} (404); check --repo and --prefix, and that it is public"
            ) from error
        except errors.HfHubHTTPError as error:
            raise ConnectionError(f"{self.repo}, {what}: {error}") from error
        except errors.LocalEntryNotFoundError as error:
            raise DataError(
                f"{self.repo} cannot be reached for {what}: {error.__cause__ or error}; try again, "
                "or use what is here with --offline"
            ) from error


def _bar_class(on_bytes: Callable[[int], object] | None) -> Any:
    """What the library takes for a progress bar: it only hands on what arrives."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if on_bytes is not None:
                on_bytes(int(n or 0))

    return Bar


def _choose(
    hub: _Hub, spec: CorpusSpec, manifest: dict[str, Any], shards: int | None
) -> list[_Remote]:
    """The files to have: what the manifest lists of the variant, as far as it is wanted."""
    names = []
    for entry in manifest["datasets"]:
        path = str(entry.get("path", "")) if isinstance(entry, dict) else ""
        names.append(PurePosixPath(path).name)
        if names[-1] == spec.folder:
            break
    else:
        known = ", ".join(sorted(filter(None, names))) or "nothing"
        raise DataError(f"{hub.repo} has no {spec.folder}; its manifest lists {known}")
    if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute():
        raise DataError(f"{hub.repo}: its manifest leads outside, to {path!r}")
    listed = sorted(hub.list_folder(_join(spec.prefix, path)), key=lambda file: file.name)
    split: dict[str, list[_Remote]] = {}
    for name in ("train", "val"):
        pattern = PurePosixPath(str(entry.get(f"{name}_glob") or f"*_{name}_*.bin")).name
        found = [f for f in listed if fnmatch(f.name, pattern) and "_bytes_" not in f.name]
        promised = (entry.get("stats") or {}).get(f"files_{name}", len(found))
        if len(found) != promised or not found:
            raise DataError(
                f"{hub.repo}: {len(found):,} {name} shards of {spec.folder}, its manifest promises "
                f"{promised:,}; the repository is incomplete"
            )
        split[name] = found
    wanted = min(DEFAULT_SHARDS, len(split["train"])) if shards is None else shards
    if not 0 < wanted <= len(split["train"]):
        raise DataError(
            f"{spec.folder} has {len(split['train']):,} training shards, {wanted:,} are asked for"
        )
    tokenizers = hub.list_folder(_join(spec.prefix, "tokenizers"))
    own = next((file for file in tokenizers if file.name == spec.tokenizer), None)
    if own is None:
        raise DataError(f"{hub.repo} has no tokenizer {spec.tokenizer} below {spec.prefix}")
    return [own, *split["val"], *split["train"][:wanted]]


def _fetch_all(
    hub: _Hub,
    missing: Sequence[_Remote],
    recorded: dict[str, FetchedFile],
    folder: Path,
    tokenizer: Path,
    workers: int,
    progress: Progress,
) -> None:
    total, done, lock = sum(file.size for file in missing), 0, threading.Lock()

    def on_bytes(count: int) -> None:
        nonlocal done
        with lock:
            done = min(done + count, total)
            progress("fetching", done, total)

    with ThreadPoolExecutor(max(min(workers, len(missing)), 1)) as pool:
        futures = {
            pool.submit(_fetch, hub, file, _place(file.name, folder, tokenizer), on_bytes): file
            for file in missing
        }
        try:
            for future in as_completed(futures):
                recorded[futures[future].name] = future.result()
                write_fetched(folder, hub.repo, recorded)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(hub: _Hub, file: _Remote, place: Path, on_bytes: Callable[[int], object]) -> FetchedFile:
    """One file, whole and of the right hash, or an error after a few tries."""
    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(0.2 * 2**attempt)
        try:
            arrived = hub.download(file.path, on_bytes)
        except OSError as error:  # the library's tries are used up, or the length is wrong
            if isinstance(error, PermissionError) or error.errno is not None:
                raise OutputError(f"cannot write {hub.inbox}: {error.strerror}") from error
            problem = str(error).splitlines()[0]
            _clear(hub.inbox, file)
            continue
        size, digest = arrived.stat().st_size, sha256_file(arrived)
        kind, _, promised = file.source_hash.partition(":")
        found = digest if kind == "sha256" else _git_hash(arrived)
        if size != file.size:
            problem = f"{size:,} bytes, the hub says {file.size:,}"
        elif found != promised:
            problem = f"{kind} {found[:12]}..., the hub says {promised[:12]}..."
        elif place.suffix == ".bin" and (bad := _shard_problem(arrived)):
            problem = bad
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(place)
            return FetchedFile(
                remote=file.path,
                bytes=size,
                sha256=digest,
                source_hash=file.source_hash,
                revision=hub.revision,
            )
        arrived.unlink()
        _clear(hub.inbox, file)
    raise DataError(
        f"{file.path} of {hub.repo} comes damaged, {_TRIES} times: {problem}; try again later"
    )


def _clear(inbox: Path, file: _Remote) -> None:
    """Forget what came of a file, so that the next try begins anew."""
    notes = inbox / ".cache" / "huggingface" / "download" / PurePosixPath(file.path).parent
    for path in notes.glob(f"{file.name}*"):
        path.unlink(missing_ok=True)
    for path in notes.glob("*.incomplete"):
        if path.name.startswith(file.name):
            path.unlink(missing_ok=True)


def _shard_problem(path: Path) -> str:
    try:
        open_shard(path)
    except DataError as error:
        return str(error)
    return ""


def _git_hash(path: Path) -> str:
    """What git calls the content: the hub lists it for small files."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_room(folder: Path, missing: Sequence[_Remote]) -> None:
    """Before the first byte: does all of it fit?"""
    needed = sum(file.size for file in missing)
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise OutputError(
            f"{folder} has {free:,} bytes free, {needed:,} are to come and {_SPARE_BYTES:,} should "
            "stay; free some space, choose another SPEEDRUN_DATA or take fewer --shards"
        )


def _check_offline(folder: Path, tokenizer: Path, shards: int | None, progress: Progress) -> None:
    recorded = read_fetched(folder)
    if not recorded:
        raise DataError(f"{folder} has no {FETCHED}: nothing was fetched here; fetch it once")
    train = [name for name in recorded if "_train_" in name]
    if shards is not None and len(train) < shards:
        raise DataError(f"{folder}: {len(train):,} training shards are here, not {shards:,}")
    for done, (name, entry) in enumerate(sorted(recorded.items()), start=1):
        place = _place(name, folder, tokenizer)
        if not place.exists() or sha256_file(place) != entry.sha256:
            raise DataError(f"{place} is missing or damaged; fetch again without --offline")
        progress("hashing", done, len(recorded))


def _compare_stats(
    folder: Path, wanted: Sequence[_Remote], manifest: dict[str, Any], spec: CorpusSpec
) -> None:
    """Tokens of the validation split against the manifest's own count."""
    for entry in manifest["datasets"]:
        if PurePosixPath(str(entry.get("path", ""))).name != spec.folder:
            continue
        promised = (entry.get("stats") or {}).get("tokens_val")
        found = sum(open_shard(folder / f.name).size for f in wanted if "_val_" in f.name)
        if promised is not None and promised != found:
            raise DataError(
                f"{folder}: {found:,} validation tokens, the repository's manifest promises "
                f"{promised:,}; it is another export"
            )


def _place(name: str, folder: Path, tokenizer: Path) -> Path:
    return tokenizer if name == tokenizer.name else folder / name


def _is_here(path: Path, entry: FetchedFile) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes


def _is_recorded(file: _Remote, entry: FetchedFile | None) -> bool:
    return entry is not None and entry.source_hash == file.source_hash


def _join(prefix: str, path: str) -> str:
    return str(PurePosixPath(prefix, path)) if prefix else path


def is_offline() -> bool:
    """Whether the hub's own environment setting forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
