"""A build as data: what its result depends on, and what its manifest says of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speedrun.data.dataset import FileEntry, Manifest, ShardEntry, SourceEntry, TokenizerEntry
from speedrun.data.merkle import merkle_root
from speedrun.data.parts import Encoding, Part
from speedrun.data.plan import Encoded, Layout, read_plan
from speedrun.data.sources import BLOCK_BYTES, Source
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import DataError

VERSION = 1
"""Goes up when the same job must give other bytes: unfinished builds then start again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the result depends on."""

    name: str
    sources: tuple[Source, ...]
    encoding: Encoding
    layout: Layout
    block_bytes: int = BLOCK_BYTES

    def describe(self, tokenizer: str | int) -> str:
        """Equal text, equal result: settings, and the state of every file."""
        files = [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for source in self.sources
            for path in source.files
        ]
        weights = [source.weight for source in self.sources]
        settings: list[object] = [self.name, self.block_bytes]
        settings += [dataclasses.asdict(self.encoding), dataclasses.asdict(self.layout)]
        return json.dumps([VERSION, tokenizer, settings, weights, files], indent=1)


def make_manifest(
    job: Job,
    tokenizer: Tokenizer,
    work: Path,
    parts: Sequence[Path],
    encoded: Sequence[Encoded],
    shards: Sequence[tuple[ShardEntry, int, bool]],
    left_out: Mapping[str, Sequence[int]],
    hashes: dict[Path, str],
) -> Manifest:
    """The manifest of a build whose shards are written.

    Raises
        DataError: a split is empty.
    """
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
    sources = describe_sources(job, work, parts, encoded, left_out, hashes)
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


def describe_sources(
    job: Job,
    work: Path,
    parts: Sequence[Path],
    encoded: Sequence[Encoded],
    left_out: Mapping[str, Sequence[int]],
    hashes: dict[Path, str],
) -> list[SourceEntry]:
    """What became of each source's records, counted from the parts and the plan."""
    documents, sizes = Counter[int](), Counter[int]()
    of_part = {part: i for i, each in enumerate(encoded) for part in each.parts}
    table = np.array([of_part[part] for part in range(len(parts))])
    for split in ("train", "val"):
        rows = read_plan(work, split)
        for start in range(0, rows.size, 1 << 20):
            block = rows[start : start + (1 << 20)]
            owner = table[block["part"]]
            for i in range(len(job.sources)):
                documents[i] += int((owner == i).sum())
                sizes[i] += int(block["bytes"][owner == i].sum(dtype=np.int64))
    described = []
    for i, source in enumerate(job.sources):
        records, dropped = 0, Counter[str]()
        for number in encoded[i].parts:
            part = Part(parts[number])
            records += int(part.header["records"])
            dropped.update(part.header["dropped"])
            part.close()
        dropped.update({why: counts[i] for why, counts in left_out.items() if counts[i]})
        described.append(
            SourceEntry(
                weight=source.weight,
                files=tuple(
                    FileEntry(file=path.name, bytes=path.stat().st_size, sha256=hashes[path])
                    for path in source.files
                ),
                records=records,
                left_out=dict(sorted(dropped.items())),
                documents=documents[i],
                raw_bytes=sizes[i],
            )
        )
    return described
