"""Sources of any size into a dataset folder: many processes, little memory, safe to kill.

    read      one process reads records in blocks
    encode    workers parse, filter and tokenise a block each, and write it as a part
    plan      duplicates, mixture, order, split and ends of shards, from sizes and hashes alone
    write     workers gather a shard each from the parts, and the raw text of validation shards

Parts and shards are whole or absent and depend on nothing but the job, so a build that was killed
goes on where it was and gives the same bytes. All happens in a folder beside the result, which
appears at the end, in one step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import mmap
import os
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from speedrun.data.dataset import (
    MANIFEST,
    Dataset,
    FileEntry,
    Manifest,
    RawEntry,
    ShardEntry,
    SourceEntry,
    TokenizerEntry,
    open_dataset,
)
from speedrun.data.lock import hold
from speedrun.data.merkle import merkle_root
from speedrun.data.parts import Encoding, Part, first_bytes, write_part
from speedrun.data.plan import Cut, Encoded, Layout, MoreNeededError, make_plan, read_plan
from speedrun.data.pool import Pool
from speedrun.data.raw_bytes import RawText, check_accounting
from speedrun.data.shards import open_shard, shard_header
from speedrun.data.sources import Block, RecordError, Source, parse, read_blocks
from speedrun.data.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from speedrun.errors import DataError, OutputError, TokenizerError
from speedrun.files import atomic_path, sha256_file, write_atomic

VERSION = 1
"""Goes up when the same job must give other bytes: unfinished builds then start again."""
_OPEN_PARTS = 128
_BLOCKS_MORE = 4
"""Blocks that a mixture's source is read on by when the plan asks for more of it."""

Progress = Callable[[str, int, int], object]
"""Told what is being done, how much of it, of how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the result depends on."""

    name: str
    sources: tuple[Source, ...]
    encoding: Encoding
    layout: Layout

    def describe(self, tokenizer: str | int) -> str:
        """Equal text, equal result: settings, and the state of every file."""
        files = [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for source in self.sources
            for path in source.files
        ]
        weights = [source.weight for source in self.sources]
        settings = [self.name, dataclasses.asdict(self.encoding), dataclasses.asdict(self.layout)]
        return json.dumps([VERSION, tokenizer, settings, weights, files], indent=1)


def build_dataset(
    job: Job,
    tokenizer: Tokenizer | int,
    out: Path,
    *,
    workers: int = 1,
    echo: Callable[[str], object] = lambda line: None,
    progress: Progress = lambda what, done, total: None,
) -> Dataset:
    """Build `out` from the job's sources and open it; call again to go on after an interruption.

    `tokenizer` is one, or the size of one to train on the training documents. With one worker
    everything runs in this process.

    Raises
        DataError: a source or record cannot be read, or a split is empty.
        TokenizerError: it has no EOS to place, cannot be trained, or counts bytes wrongly.
        OutputError: `out` is taken or cannot be written.
    """
    if isinstance(tokenizer, Tokenizer) and job.encoding.with_eos and tokenizer.eos_id < 0:
        raise TokenizerError("the tokenizer has no EOS apart from its BOS, so none can be placed")
    work = out.with_name(f".{out.name}.work")
    described = job.describe(tokenizer if isinstance(tokenizer, int) else tokenizer.sha256)
    with hold(work / "lock", echo, remedy="choose a folder that you may write to"):
        _begin(work, out, described, echo)
        if (out / MANIFEST).exists():  # killed between the last two steps
            shutil.rmtree(work)
            return open_dataset(out)
        if isinstance(tokenizer, int):
            tokenizer = _train(job, tokenizer, work / "tokenizer.model", echo)
        context = _Context(work, tokenizer.model, job.encoding)
        with Pool(workers, _enter, context) as pool:
            parts = _Parts(job, work, pool, progress)
            cuts, duplicates = parts.encode_all()
            total = sum(cut.tokens for cut in cuts)
            echo(f"{out.name}: {total:,} tokens in {len(cuts):,} shards")
            shards = _write_shards(work, cuts, pool, progress)
            hashes = _hash_sources(job, pool)
        manifest = _manifest(job, tokenizer, parts, shards, duplicates, hashes)
        folder = work / "dataset"
        write_atomic(folder / tokenizer.file_name, tokenizer.model)
        write_atomic(folder / MANIFEST, manifest.to_json())
        try:
            folder.replace(out)
        except OSError as error:
            raise OutputError(f"cannot make {out}: {error.strerror}; choose another") from error
        shutil.rmtree(work)
    return open_dataset(out)


def default_workers() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(work: Path, out: Path, described: str, echo: Callable[[str], object]) -> None:
    """Make the work folder, or find in it an unfinished build of the same job."""
    path = work / "job.json"
    is_same = path.exists() and path.read_text(encoding="utf-8") == described
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not is_same:
        if not path.exists():
            shutil.rmtree(work, ignore_errors=True)
        raise OutputError(f"{out} exists and is not an empty folder; remove it or choose another")
    if path.exists() and not is_same:
        echo(f"{work}: starting again, the build begun there is of other sources or settings")
        for old in work.iterdir():
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    for orphan in work.rglob(".*.tmp"):
        orphan.unlink()
    (work / "dataset").mkdir(exist_ok=True)
    write_atomic(path, described.encode())


class _Parts:
    """Encodes blocks of all sources in an order that depends on nothing but the job."""

    def __init__(self, job: Job, work: Path, pool: Pool, progress: Progress) -> None:
        self.job, self.work, self.pool, self.progress = job, work, pool, progress
        self.paths: list[Path] = []
        self.sources = [
            Encoded(parts=[], weight=source.weight, is_complete=False) for source in job.sources
        ]
        self._streams = [self._read(source) for source in job.sources]
        self._read_bytes = 0
        self._total = sum(path.stat().st_size for each in job.sources for path in each.files)

    def encode_all(self) -> tuple[list[Cut], list[int]]:
        """Encode as much as the plan needs, and make it."""
        is_mixture = any(source.weight is not None for source in self.sources)
        if not is_mixture:
            for source in range(len(self.sources)):
                while self._encode_next(source):
                    pass
        else:
            given = [0.0] * len(self.sources)
            while True:
                source = given.index(min(given))
                size = self._encode_next(source)
                if not size:
                    break
                given[source] += size / (self.sources[source].weight or 1.0)
        while True:
            self.pool.finish()
            write_atomic(self.work / "parts.json", json.dumps(list(map(str, self.paths))).encode())
            try:
                return make_plan(self.work, self.paths, self.sources, self.job.layout)
            except MoreNeededError as error:
                for _ in range(_BLOCKS_MORE):
                    self._encode_next(error.source)

    def _encode_next(self, source: int) -> int:
        """Hand the next block of a source to a worker; returns its size, 0 at the end."""
        block = next(self._streams[source], None)
        if block is None:
            self.sources[source].is_complete = True
            return 0
        number = len(self.sources[source].parts)
        path = self.work / "parts" / f"{source:03d}-{number:06d}.part"
        self.sources[source].parts.append(len(self.paths))
        self.paths.append(path)
        if not path.exists():
            self.pool.submit(_encode, path, block)
        self.progress("reading", self._read_bytes, self._total)
        return sum(len(content) for _, _, content in block)

    def _read(self, source: Source) -> Iterator[Block]:
        encoding = self.job.encoding

        def on_bytes(count: int) -> None:
            self._read_bytes += count

        return read_blocks(
            source, text_key=encoding.text_key, id_key=encoding.id_key, on_bytes=on_bytes
        )


@dataclass(frozen=True, slots=True)
class _Context:
    """What a worker process knows."""

    work: Path
    model: bytes
    encoding: Encoding


class _Worker:
    """A worker's own state: the tokenizer, and parts that are open for reading."""

    def __init__(self, context: _Context) -> None:
        self.context = context
        self.tokenizer = open_tokenizer(context.model, source="the tokenizer")
        self._open: OrderedDict[int, Part] = OrderedDict()
        self._paths: list[str] = []

    def part(self, number: int) -> Part:
        """An open part; the one that was not used for longest is closed for it."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if not self._paths:
            self._paths = json.loads((self.context.work / "parts.json").read_bytes())
        while len(self._open) >= _OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        self._open[number] = Part(Path(self._paths[number]))
        return self._open[number]

    def close(self) -> None:
        """Close all parts."""
        while self._open:
            self._open.popitem()[1].close()


def _enter(context: _Context) -> _Worker:
    return _Worker(context)


def _encode(worker: _Worker, path: Path, block: Block) -> None:
    write_part(path, block, worker.tokenizer, worker.context.encoding)


def _write_shards(
    work: Path, cuts: Sequence[Cut], pool: Pool, progress: Progress
) -> list[tuple[ShardEntry, int, bool]]:
    total, done = sum(cut.tokens for cut in cuts), 0
    for cut in cuts:
        if not _entry_path(work, cut).exists():
            pool.submit(_write_shard, cut)
        done += cut.tokens
        progress("writing", done, total)
    pool.finish()
    found = []
    for cut in cuts:
        values = json.loads(_entry_path(work, cut).read_bytes())
        if raw := values["entry"]["raw"]:
            names = ("document_ids", "document_bytes")
            values["entry"]["raw"] = RawEntry(**raw | {key: tuple(raw[key]) for key in names})
        found.append((ShardEntry(**values["entry"]), values["token_bytes"], values["lossless"]))
    return found


def _entry_path(work: Path, cut: Cut) -> Path:
    return work / "entries" / f"{cut.split}-{cut.index:06d}.json"


def _write_shard(worker: _Worker, cut: Cut) -> None:
    """Gather one shard from the parts; what the manifest says of it is written last."""
    work = worker.context.work
    path = work / "dataset" / f"shard_{cut.split}_{cut.index:06d}.bin"
    rows = np.asarray(read_plan(work, cut.split)[cut.first : cut.last])
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb", buffering=1 << 20) as file:
        places = zip(rows["part"].tolist(), rows["document"].tolist(), strict=True)
        streams = (worker.part(part).stream(document) for part, document in places)
        for piece in chain([shard_header(cut.tokens)], streams):
            file.write(piece)
            digest.update(piece)
    raw, token_bytes, is_lossless = None, 0, True
    if cut.split == "val":
        raw, token_bytes, is_lossless = _write_raw(worker, path, rows)
    worker.close()
    entry = ShardEntry(
        file=path.name,
        split=cut.split,
        tokens=cut.tokens,
        documents=rows.size,
        sha256=digest.hexdigest(),
        raw=raw,
    )
    facts = {
        "entry": dataclasses.asdict(entry),
        "token_bytes": token_bytes,
        "lossless": is_lossless,
    }
    write_atomic(_entry_path(work, cut), json.dumps(facts).encode())


def _write_raw(
    worker: _Worker, shard: Path, rows: np.ndarray[Any, Any]
) -> tuple[RawEntry, int, bool]:
    """The original text of a validation shard, held against its tokens."""
    tokenizer, path = worker.tokenizer, shard.with_suffix(".raw")
    sizes = rows["bytes"].tolist()
    starts = np.concatenate([[0], np.cumsum(rows["bytes"], dtype=np.int64)]).tolist()
    ids = [""] * rows.size
    is_lossless = True
    tail = -1 if worker.context.encoding.with_eos else None
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            for number in np.unique(rows["part"]).tolist():
                part = worker.part(number)
                texts = part.read_texts()
                for row in np.flatnonzero(rows["part"] == number).tolist():
                    document = int(rows["document"][row])
                    start, end = part.byte_starts[document : document + 2].tolist()
                    ids[row] = part.ids[document]
                    file.seek(starts[row])
                    file.write(texts[start:end])
                    tokens = np.frombuffer(part.stream(document), dtype="<u2")[1:tail]
                    is_lossless &= tokenizer.decode(tokens.tolist()).encode() == texts[start:end]
        digest = sha256_file(temporary)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if starts[-1] else b""
        counted = check_accounting(
            open_shard(shard),
            tokenizer.byte_table(),
            RawText(data, sizes, ids),
            bos_id=tokenizer.bos_id,
            lossless=is_lossless,
        )
        if isinstance(data, mmap.mmap):
            data.close()
    entry = RawEntry(
        file=path.name, sha256=digest, document_ids=tuple(ids), document_bytes=tuple(sizes)
    )
    return entry, counted.token_bytes, is_lossless


def _hash_sources(job: Job, pool: Pool) -> dict[Path, str]:
    paths = [path for source in job.sources for path in source.files]
    futures = [pool.submit(_hash_file, path) for path in paths]
    return {path: future.result() for path, future in zip(paths, futures, strict=True)}


def _hash_file(worker: _Worker, path: Path) -> str:
    return sha256_file(path)


def _manifest(
    job: Job,
    tokenizer: Tokenizer,
    parts: _Parts,
    shards: list[tuple[ShardEntry, int, bool]],
    duplicates: list[int],
    hashes: dict[Path, str],
) -> Manifest:
    entries = [entry for entry, _, _ in shards]
    for split in ("train", "val"):
        if not any(entry.split == split for entry in entries):
            raise DataError(
                f"{job.name}: no document fell into the {split} split; "
                "give more documents or change the share of validation"
            )
    raw = [entry.raw for entry in entries if entry.raw]
    files = {entry.file: entry.sha256 for entry in entries}
    files |= {entry.file: entry.sha256 for entry in raw}
    files[tokenizer.file_name] = tokenizer.sha256
    sources = _describe_sources(job, parts, duplicates, hashes)
    val_raw_bytes = sum(sum(entry.document_bytes) for entry in raw)
    return Manifest(
        name=job.name,
        source=hashlib.sha256("".join(sorted(hashes.values())).encode()).hexdigest(),
        tokenizer=TokenizerEntry(
            file=tokenizer.file_name,
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
        ),
        train_tokens=sum(entry.tokens for entry in entries if entry.split == "train"),
        val_tokens=sum(entry.tokens for entry in entries if entry.split == "val"),
        val_raw_bytes=val_raw_bytes,
        val_token_bytes=sum(token_bytes for _, token_bytes, _ in shards),
        lossless=all(is_lossless for _, _, is_lossless in shards),
        shards=tuple(entries),
        merkle_root=merkle_root(files),
        train_raw_bytes=sum(source.raw_bytes for source in sources) - val_raw_bytes,
        order=job.layout.order,
        with_eos=job.encoding.with_eos,
        sources=tuple(sources),
    )


def _describe_sources(
    job: Job, parts: _Parts, duplicates: list[int], hashes: dict[Path, str]
) -> list[SourceEntry]:
    documents, sizes = Counter[int](), Counter[int]()
    of_part = {part: i for i, each in enumerate(parts.sources) for part in each.parts}
    table = np.array([of_part[part] for part in range(len(parts.paths))])
    for split in ("train", "val"):
        rows = read_plan(parts.work, split)
        for start in range(0, rows.size, 1 << 20):
            block = rows[start : start + (1 << 20)]
            owner = table[block["part"]]
            for i in range(len(job.sources)):
                documents[i] += int((owner == i).sum())
                sizes[i] += int(block["bytes"][owner == i].sum(dtype=np.int64))
    described = []
    for i, source in enumerate(job.sources):
        records, left_out = 0, Counter[str]()
        for number in parts.sources[i].parts:
            part = Part(parts.paths[number])
            records += int(part.header["records"])
            left_out.update(part.header["dropped"])
            part.close()
        if duplicates[i]:
            left_out["duplicate"] = duplicates[i]
        described.append(
            SourceEntry(
                weight=source.weight,
                files=tuple(
                    FileEntry(file=path.name, bytes=path.stat().st_size, sha256=hashes[path])
                    for path in source.files
                ),
                records=records,
                left_out=dict(sorted(left_out.items())),
                documents=documents[i],
                raw_bytes=sizes[i],
            )
        )
    return described


def _train(job: Job, vocab_size: int, path: Path, echo: Callable[[str], object]) -> Tokenizer:
    """Train a tokenizer on documents that cannot be validation; once for a job."""
    if path.exists():
        return Tokenizer.load(path)
    echo(f"{job.name}: training a tokenizer of {vocab_size:,} pieces")
    # Who is validation is known only after filters and duplicates: leave out more than enough.
    count = 2 * (job.layout.validation_count or 0) + (100 if job.layout.validation_count else 0)
    if job.layout.validation_count is None:
        limit = int(job.layout.validation_frac * 2**64)
    elif job.layout.order == "stream":
        limit = 0
    else:
        keys = (first_bytes(name.encode()) for name, _ in _documents(job, 0))
        limit = (heapq.nsmallest(count, keys) or [0])[-1] + 1
        count = 0
    skipped = count if job.layout.order == "stream" else 0
    texts = (text for name, text in _documents(job, skipped) if first_bytes(name.encode()) >= limit)
    return train_tokenizer(texts, vocab_size, path)


def _documents(job: Job, skipped: int) -> Iterator[tuple[str, str]]:
    """Readable, filtered documents, a block of each source in turn, without the first of each."""
    encoding = job.encoding
    streams = [
        read_blocks(source, text_key=encoding.text_key, id_key=encoding.id_key)
        for source in job.sources
    ]
    left = [skipped] * len(streams)
    while streams:
        for i, stream in reversed(list(enumerate(streams))):
            block = next(stream, None)
            if block is None:
                del streams[i], left[i]
                continue
            for record in block:
                try:
                    name, text = parse(record, text_key=encoding.text_key, id_key=encoding.id_key)
                except RecordError:
                    continue  # counted, or an error, when it is encoded
                if encoding.filters.reason(text, text.encode()):
                    continue
                left[i] -= 1
                if left[i] < 0:
                    yield name, text
