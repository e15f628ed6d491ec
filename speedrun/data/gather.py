"""What a worker of `data.build` does: encode a block, gather a shard, hash a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedrun.data.dataset import RawEntry, ShardEntry
from speedrun.data.overlap import Index, Validation, build_index, find_alike, in_groups
from speedrun.data.parts import Encoding, Part, write_part
from speedrun.data.plan import Cut, read_plan
from speedrun.data.raw_bytes import RawText, check_accounting
from speedrun.data.shards import open_shard, shard_header
from speedrun.data.sources import Block
from speedrun.data.tokenizer import open_tokenizer
from speedrun.files import atomic_path, sha256_file, write_atomic

_OPEN_PARTS = 128


@dataclass(frozen=True, slots=True)
class Context:
    """What a worker process knows."""

    work: Path
    model: bytes
    encoding: Encoding


class Worker:
    """A worker's own state: the tokenizer, and parts that are open for reading."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokenizer = open_tokenizer(context.model, source="the tokenizer")
        self.index: Index | None = None
        """Validation documents, once they are asked about."""
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


def enter(context: Context) -> Worker:
    """Make a worker process's state."""
    return Worker(context)


def encode(worker: Worker, path: Path, block: Block) -> None:
    """Write the part of one block."""
    write_part(path, block, worker.tokenizer, worker.context.encoding)


def entry_path(work: Path, cut: Cut) -> Path:
    """Where what the manifest says of a shard waits; there once the shard is whole."""
    return work / "entries" / f"{cut.split}-{cut.index:06d}.json"


def write_shard(worker: Worker, cut: Cut) -> None:
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
    write_atomic(entry_path(work, cut), json.dumps(facts).encode())


def _write_raw(worker: Worker, shard: Path, rows: NDArray[Any]) -> tuple[RawEntry, int, bool]:
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


def find_like(worker: Worker, path: Path, val: tuple[Path, ...], run_tokens: int) -> None:
    """Write beside a part which of its documents are like one of the validation shards."""
    if worker.index is None:
        worker.index = build_index(Validation(val, worker.tokenizer.bos_id, run_tokens))
    part = Part(path)
    found: set[int] = set()
    done = 0
    for group in in_groups(stream[1:] for stream in part.read_streams()):
        found |= {done + place for place, _, _ in find_alike(worker.index, group)}
        done += len(group)
    part.close()
    write_atomic(path.with_suffix(".like"), json.dumps(sorted(found)).encode())


def hash_file(worker: Worker, path: Path) -> str:
    """SHA-256 of a file."""
    return sha256_file(path)
