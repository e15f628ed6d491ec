"""From encoded parts to the order of a dataset: duplicates, mixture, split, and ends of shards.

Only ids' hashes, texts' hashes and sizes are read here. What grows with the number of documents
lies in files; memory holds one byte for each, and a few million at a time for sorting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from speedrun.data.parts import Part
from speedrun.data.shards import Split

ROWS_AT_ONCE = 4_000_000
ENTRY = np.dtype(
    [("key", "<u8"), ("part", "<u4"), ("document", "<u4"), ("tokens", "<u4"), ("bytes", "<u4")]
)
"""One document: its hashed id, the part it is in and its place there, and its sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How documents are ordered, split and cut into shards."""

    order: Literal["hash", "stream"] = "hash"
    """By the SHA-256 of the id, which shuffles; or as the sources give them."""
    validation_count: int | None = None
    """The first so many documents of the order are validation."""
    validation_frac: float = 0.0
    """Instead: the documents in this share of the hash range, wherever they stand."""
    shard_tokens: int = 100_000_000
    """A shard ends with the document that reaches it."""
    keep_duplicates: bool = False
    keep_overlap: bool = False
    """Keep training documents that are like a validation document."""
    seed: int = 0
    """Of the order in which a mixture draws from its sources."""


@dataclass(slots=True)
class Encoded:
    """The parts of one source so far."""

    parts: list[int]
    """Their numbers, in order."""
    weight: float | None
    is_complete: bool
    """Whether the source has no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One shard to write: documents `first` to `last` of its split's plan."""

    split: Split
    index: int
    first: int
    last: int
    tokens: int


class MoreNeededError(Exception):
    """A mixture draws on a source beyond what is encoded of it."""

    def __init__(self, source: int) -> None:
        super().__init__(source)
        self.source = source


def make_plan(
    folder: Path, paths: Sequence[Path], sources: Sequence[Encoded], layout: Layout
) -> list[int]:
    """Write `train.plan` and `val.plan`; returns how many duplicates each source had.

    Raises
        MoreNeededError: encode more of that source and ask again.
    """
    duplicates = _find_duplicates(paths) if not layout.keep_duplicates else None
    index = folder / "index"
    dropped = _write_index(index, paths, sources, duplicates, layout.seed)
    ordered = index
    if layout.order == "hash":
        ordered = folder / "ordered"
        _sort(index, ordered)
    _split(ordered, folder, layout)
    return dropped


def cut_plan(folder: Path, split: Split, layout: Layout) -> list[Cut]:
    """The shards of a split."""
    return list(_cut(read_plan(folder, split), split, layout.shard_tokens))


def drop_from_plan(folder: Path, dropped: Sequence[Sequence[int]]) -> list[int]:
    """Take documents, given by part, out of the training plan; returns how many of each part."""
    entries = read_plan(folder, "train")
    counts = np.zeros(len(dropped), dtype=np.int64)
    marked = [np.array(each, dtype=np.int64) for each in dropped]
    kept = folder / "train.kept"
    with kept.open("wb") as file:
        for block in _blocks(entries):
            # A part has few documents, so part and document make one small number.
            place = block["part"].astype(np.int64) << 32 | block["document"]
            wrong = [each + (part << 32) for part, each in enumerate(marked) if each.size]
            is_wrong = np.isin(place, np.concatenate(wrong)) if wrong else np.zeros(0, dtype=bool)
            if wrong:
                counts += np.bincount(block["part"][is_wrong], minlength=len(dropped))
                block = block[~is_wrong]
            file.write(block.tobytes())
    kept.replace(folder / "train.plan")
    return counts.tolist()


def read_plan(folder: Path, split: Split) -> NDArray[Any]:
    """The documents of a split in their order, mapped into memory.

    Shapes
        result  (documents,)  ENTRY
    """
    return _map(folder / f"{split}.plan")


def _find_duplicates(paths: Sequence[Path]) -> list[NDArray[np.bool_]]:
    """For each part, which documents have the text of an earlier one."""
    sizes = [_count(path) for path in paths]
    found = [np.zeros(size, dtype=np.bool_) for size in sizes]
    passes = sum(sizes) // ROWS_AT_ONCE + 1
    for number in range(passes):
        digests, where = [], []
        for index, path in enumerate(paths):
            digest = _column(path, "digest")
            rows = np.flatnonzero(digest % np.uint64(passes) == number) if passes > 1 else None
            rows = np.arange(digest.size) if rows is None else rows
            digests.append(digest[rows])
            where.append(np.stack([np.full(rows.size, index), rows]).astype(np.uint32))
        joined, places = np.concatenate(digests or [np.empty(0)]), np.concatenate(where, axis=1)
        order = np.argsort(joined, kind="stable")
        again = order[1:][joined[order[1:]] == joined[order[:-1]]]
        for index, row in places[:, again].T.tolist():
            found[index][row] = True
    return found


def _write_index(
    index: Path,
    paths: Sequence[Path],
    sources: Sequence[Encoded],
    duplicates: list[NDArray[np.bool_]] | None,
    seed: int,
) -> list[int]:
    dropped = [0] * len(sources)

    def entries(source: int) -> Iterator[NDArray[Any]]:
        for number in sources[source].parts:
            part = Part(paths[number])
            found = np.zeros(part.documents, dtype=ENTRY)
            for name in ("key", "tokens", "bytes"):
                found[name] = part.column(name)
            found["part"], found["document"] = number, np.arange(part.documents)
            part.close()
            if duplicates is not None:
                dropped[source] += int(duplicates[number].sum())
                found = found[~duplicates[number]]
            yield found

    with index.open("wb") as file:
        if any(source.weight is not None for source in sources):
            streams = [entries(source) for source in range(len(sources))]
            for block in _mix(streams, sources, seed):
                file.write(block.tobytes())
        else:
            for source in range(len(sources)):
                for block in entries(source):
                    file.write(block.tobytes())
    return dropped


def _mix(
    streams: list[Iterator[NDArray[Any]]], sources: Sequence[Encoded], seed: int
) -> Iterator[NDArray[Any]]:
    """Documents of all sources, so that at any time each has given its share of the bytes.

    The next one comes from the source that is furthest behind, with a random lead of up to one
    document. A mixture ends where one of its sources does: after that it would be another.
    """
    weights = [source.weight or 1.0 for source in sources]
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, 20]))
    blocks = [np.empty(0, dtype=ENTRY) for _ in sources]
    sizes: list[list[int]] = [[] for _ in sources]
    places, given = [0] * len(sources), [0] * len(sources)
    leads = [0.0] * len(sources)
    chosen: list[NDArray[Any]] = []
    while True:
        due = [(given[i] + leads[i]) / weights[i] for i in range(len(sources))]
        source = due.index(min(due))
        while places[source] == len(sizes[source]):
            block = next(streams[source], None)
            if block is None:
                if not sources[source].is_complete:
                    raise MoreNeededError(source)
                if chosen:
                    yield np.concatenate(chosen)
                return
            blocks[source], sizes[source], places[source] = block, block["bytes"].tolist(), 0
        place = places[source]
        chosen.append(blocks[source][place : place + 1])
        given[source] += sizes[source][place]
        leads[source] = sizes[source][place] * int(bits.random_raw()) / 2**64
        places[source] += 1
        if len(chosen) >= 10_000:
            yield np.concatenate(chosen)
            chosen = []


def _sort(source: Path, target: Path) -> None:
    """By key; of equal keys the earlier first. One range of keys at a time."""
    entries = _map(source)
    passes = entries.size // ROWS_AT_ONCE + 1
    width = 2**64 // passes + 1
    with target.open("wb") as file:
        for number in range(passes):
            rows = []
            for block in _blocks(entries):
                keys = block["key"] // np.uint64(width) if passes > 1 else None
                rows.append(block if keys is None else block[keys == number])
            found = np.concatenate(rows) if rows else np.empty(0, dtype=ENTRY)
            file.write(found[np.argsort(found["key"], kind="stable")].tobytes())


def _split(ordered: Path, folder: Path, layout: Layout) -> None:
    entries = _map(ordered)
    count = layout.validation_count
    limit = min(int(layout.validation_frac * 2**64), 2**64 - 1)
    done = 0
    with (folder / "train.plan").open("wb") as train, (folder / "val.plan").open("wb") as val:
        for block in _blocks(entries):
            if count is not None:
                is_val = np.arange(done, done + block.size) < count
            else:
                is_val = block["key"] < np.uint64(limit)
            val.write(block[is_val].tobytes())
            train.write(block[~is_val].tobytes())
            done += block.size


def _cut(entries: NDArray[Any], split: Split, shard_tokens: int) -> Iterator[Cut]:
    first = index = 0
    while first < entries.size:
        tokens, last = 0, first
        while tokens < shard_tokens and last < entries.size:
            ends = tokens + np.cumsum(entries["tokens"][last : last + 65_536], dtype=np.int64)
            taken = min(int(np.searchsorted(ends, shard_tokens)) + 1, ends.size)
            tokens, last = int(ends[taken - 1]), last + taken
        yield Cut(split=split, index=index, first=first, last=last, tokens=tokens)
        first, index = last, index + 1


def _count(path: Path) -> int:
    part = Part(path)
    part.close()
    return part.documents


def _column(path: Path, name: str) -> NDArray[Any]:
    part = Part(path)
    try:
        return part.column(name)
    finally:
        part.close()


def _map(path: Path) -> NDArray[Any]:
    if path.stat().st_size == 0:  # the operating system refuses to map nothing
        return np.empty(0, dtype=ENTRY)
    return np.memmap(path, dtype=ENTRY, mode="r")


def _blocks(entries: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, entries.size, ROWS_AT_ONCE):
        yield np.asarray(entries[start : start + ROWS_AT_ONCE])
