"""Sources of any size into a dataset folder: many processes, little memory, safe to kill.

    read      one process reads records in blocks
    encode    workers parse, filter and tokenise a block each, and write it as a part
    plan      duplicates, mixture, order, split and ends of shards, from sizes and hashes alone
    write     workers gather validation shards from the parts, with their raw text
    compare   workers name the training documents of a part that are like a validation document
    write     workers gather the training shards

Parts and shards are whole or absent and depend on nothing but the job, so a build that was killed
goes on where it was and gives the same bytes. All happens in a folder beside the result, which
appears at the end, in one step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from speedrun.data.dataset import MANIFEST, Dataset, RawEntry, ShardEntry, open_dataset
from speedrun.data.gather import (
    Context,
    encode,
    enter,
    entry_path,
    find_like,
    hash_file,
    write_shard,
)
from speedrun.data.job import Job, make_manifest
from speedrun.data.lock import hold
from speedrun.data.overlap import run_length
from speedrun.data.own_tokenizer import train_for
from speedrun.data.plan import Cut, Encoded, MoreNeededError, cut_plan, drop_from_plan, make_plan
from speedrun.data.pool import Pool
from speedrun.data.sources import Block, Source, read_blocks
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import OutputError, TokenizerError
from speedrun.files import write_atomic

_BLOCKS_MORE = 4
"""Blocks that a mixture's source is read on by when the plan asks for more of it."""

Progress = Callable[[str, int, int], object]
"""Told what is being done, how much of it, of how much."""


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
            tokenizer = train_for(job, tokenizer, work / "tokenizer.model", echo)
        context = Context(work, tokenizer.model, job.encoding)
        with Pool(workers, enter, context) as pool:
            parts = _Parts(job, work, pool, progress)
            left_out = {"duplicate": parts.encode_all()}
            val = _write_shards(work, cut_plan(work, "val", job.layout), pool, progress)
            if not job.layout.keep_overlap:
                left_out["like validation"] = _drop_overlap(work, parts, val, pool, progress)
            cuts = cut_plan(work, "train", job.layout)
            echo(f"{out.name}: {sum(cut.tokens for cut in cuts):,} tokens in {len(cuts):,} shards")
            shards = [*_write_shards(work, cuts, pool, progress), *val]
            hashes = _hash_sources(job, pool)
        manifest = make_manifest(
            job, tokenizer, work, parts.paths, parts.sources, shards, left_out, hashes
        )
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

    def encode_all(self) -> list[int]:
        """Encode as much as the plan needs, and make it; returns each source's duplicates."""
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
            self.pool.submit(encode, path, block)
        self.progress("reading", self._read_bytes, self._total)
        return sum(len(content) for _, _, content in block)

    def _read(self, source: Source) -> Iterator[Block]:
        encoding = self.job.encoding

        def on_bytes(count: int) -> None:
            self._read_bytes += count

        return read_blocks(
            source,
            text_key=encoding.text_key,
            id_key=encoding.id_key,
            block_bytes=self.job.block_bytes,
            on_bytes=on_bytes,
        )


def _write_shards(
    work: Path, cuts: Sequence[Cut], pool: Pool, progress: Progress
) -> list[tuple[ShardEntry, int, bool]]:
    total, done = sum(cut.tokens for cut in cuts), 0
    for cut in cuts:
        if not entry_path(work, cut).exists():
            pool.submit(write_shard, cut)
        done += cut.tokens
        progress("writing", done, total)
    pool.finish()
    found = []
    for cut in cuts:
        values = json.loads(entry_path(work, cut).read_bytes())
        if raw := values["entry"]["raw"]:
            names = ("document_ids", "document_bytes")
            values["entry"]["raw"] = RawEntry(**raw | {key: tuple(raw[key]) for key in names})
        found.append((ShardEntry(**values["entry"]), values["token_bytes"], values["lossless"]))
    return found


def _drop_overlap(
    work: Path,
    parts: _Parts,
    val: Sequence[tuple[ShardEntry, int, bool]],
    pool: Pool,
    progress: Progress,
) -> list[int]:
    """Take training documents out that are like a validation document; returns each source's."""
    raw_bytes = sum(sum(entry.raw.document_bytes) for entry, _, _ in val if entry.raw)
    if not raw_bytes:
        return [0] * len(parts.sources)
    length = run_length(raw_bytes / max(sum(entry.tokens for entry, _, _ in val), 1))
    shards = tuple(work / "dataset" / entry.file for entry, _, _ in val)
    for number, path in enumerate(parts.paths):
        if not path.with_suffix(".like").exists():
            pool.submit(find_like, path, shards, length)
        progress("comparing with validation", number + 1, len(parts.paths))
    pool.finish()
    like = [json.loads(path.with_suffix(".like").read_bytes()) for path in parts.paths]
    counts = drop_from_plan(work, like)
    return [sum(counts[part] for part in source.parts) for source in parts.sources]


def _hash_sources(job: Job, pool: Pool) -> dict[Path, str]:
    paths = [path for source in job.sources for path in source.files]
    futures = [pool.submit(hash_file, path) for path in paths]
    return {path: future.result() for path, future in zip(paths, futures, strict=True)}
