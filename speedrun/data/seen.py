"""What is known of a dataset's overlap, kept in the cache: looking again at 10 billion tokens for
every run would take longer than the run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from speedrun.data.check import overlap_lines
from speedrun.data.corpus import cache_folder
from speedrun.data.dataset import Dataset
from speedrun.data.overlap import find_overlap
from speedrun.data.report import Report, Status
from speedrun.files import write_atomic

MAX_BYTES_NOW = 500_000_000
"""Training shards up to this size are compared when a run starts: 20 s on two cores, once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapNote:
    """Status and words of the two lines."""

    exact: Status
    near: Status
    found: str


def note_overlap(dataset: Dataset, *, allows_near: bool, workers: int = 1) -> OverlapNote:
    """Whether validation documents are in training; from the cache if it was asked before.

    Shards too large to look at now are UNDECIDED until `speedrun data check` has seen them.

    Raises
        DataError: a shard is damaged.
    """
    path = _path(dataset.fingerprint)
    try:
        values = json.loads(path.read_bytes())
        return OverlapNote(**values)
    except (OSError, ValueError, TypeError):
        pass  # not asked before, or not by this version
    size = sum(each.stat().st_size for each in dataset.train_shards)
    if size > MAX_BYTES_NOW:
        found = f"{dataset.name} was not compared yet; `speedrun data check` does it"
        return OverlapNote(exact="UNDECIDED", near="UNDECIDED", found=found)
    tokens = sum(each.stat().st_size for each in dataset.val_shards) // 2
    overlap = find_overlap(
        dataset.train_shards,
        dataset.val_shards,
        bos_id=dataset.bos_id,
        bytes_per_token=dataset.val_raw_bytes / max(tokens, 1),
        workers=workers,
    )
    manifest = dataset.manifest
    raws = [shard.raw for shard in manifest.shards if shard.raw] if manifest else []
    names = [name for raw in raws for name in raw.document_ids]
    lines = overlap_lines(overlap, allows_near=allows_near, names=names)
    note = OverlapNote(
        exact=lines[0].status,
        near=lines[1].status,
        found="; ".join(line.found for line in lines),
    )
    _keep(path, note)
    return note


def remember_overlap(report: Report) -> None:
    """Keep what a check found, for the runs on this dataset."""
    lines = {line.id: line for line in report.lines}
    if not report.fingerprint or not {"overlap", "near overlap"} <= lines.keys():
        return
    exact, near = lines["overlap"], lines["near overlap"]
    if "UNDECIDED" in (exact.status, near.status):
        return
    found = f"{exact.found}; {near.found}"
    _keep(_path(report.fingerprint), OverlapNote(exact=exact.status, near=near.status, found=found))


def _path(fingerprint: str) -> Path:
    return cache_folder() / "overlap" / f"{re.sub('[^0-9a-f]', '', fingerprint)}.json"


def _keep(path: Path, note: OverlapNote) -> None:
    values = {"exact": note.exact, "near": note.near, "found": note.found}
    write_atomic(path, (json.dumps(values) + "\n").encode())
