"""What a run went through: loss, score and pace over steps, tokens and seconds.

From `metrics.jsonl` of a run folder, or from a log in any dialect that the judge can read. Both may
come from strangers: sizes are bounded, and a line that is no measurement is passed over.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedrun.errors import RecordError
from speedrun.verify.forensics.dialects import read_log
from speedrun.verify.forensics.log import Log, Stage

FILE_LIMIT_BYTES = 1 << 24
_ROWS = 100_000
_NORMS = ("weight_norm", "update_norm", "grad_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Measurements in the order in which they were made; pairs are (where, value)."""

    name: str
    train_nats: Sequence[tuple[float, float]] = ()
    """Mean nats per token of a step's batch, by step."""
    val_bpb: Sequence[tuple[float, float]] = ()
    """Score of a look at the validation text, by step."""
    seconds: Mapping[float, float] = field(default_factory=dict)
    """Training seconds at a step."""
    tokens_per_step: float = 0.0
    """0 where nothing says."""
    progress: Mapping[float, float] = field(default_factory=dict)
    """Share of the budget at a step."""
    memory_bytes: Sequence[tuple[float, float]] = ()
    norms: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """By what they are of, e.g. `update_norm matrix`."""
    last_moment: float | None = None
    """Time of day of the last measurement, in seconds since 1970."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Last stated bytes of `code`, `model` and `total`."""

    def by_seconds(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """The same over training seconds, without steps whose time is unknown."""
        return [(self.seconds[step], value) for step, value in points if step in self.seconds]

    def by_tokens(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """The same over tokens; nothing where the batch is unknown."""
        if not self.tokens_per_step:
            return []
        return [(step * self.tokens_per_step, value) for step, value in points]

    @property
    def step_seconds(self) -> list[tuple[float, float]]:
        """Seconds per step between neighbouring measurements, at the later step."""
        known = sorted(self.seconds.items())
        return [
            (step, (seconds - before_s) / (step - before))
            for (before, before_s), (step, seconds) in itertools.pairwise(known)
            if step > before
        ]


def course_of_run(folder: Path, tokens_per_step: float) -> Course:
    """What `metrics.jsonl` and `train.log` of a run folder say; empty where there is none yet."""
    rows = list(_rows(folder / "metrics.jsonl"))
    log = course_of_log(folder / "train.log", "", tokens_per_step=tokens_per_step)
    by_step: dict[float, float] = {0.0: 0.0} if rows else {}
    # A resumed run makes some steps twice: what it went on with stands later, and counts.
    by_step |= {row["step"]: row["elapsed_s"] for row in rows if "elapsed_s" in row}
    return Course(
        name=folder.name,
        train_nats=_column(rows, "train_nats"),
        val_bpb=_column(rows, "val_bpb"),
        seconds={step: by_step[step] for step in sorted(by_step) if step},
        tokens_per_step=tokens_per_step,
        progress=dict(_column(rows, "progress")),
        memory_bytes=_column(rows, "memory_bytes"),
        norms=dict(_norms(rows)),
        last_moment=next((row["time"] for row in reversed(rows) if "time" in row), None),
        sizes=log.sizes,
    )


def course_of_log(path: Path, name: str, *, tokens_per_step: float = 0.0) -> Course:
    """What a log says, by the judge's reader of dialects; an empty course if there is no file.

    Raises
        RecordError: there is a file that cannot be read, or it is too large to be a log.
    """
    if not path.is_file():
        return Course(name=name)
    log = read_log(read_limited(path).decode("utf-8", "replace"), path.name)
    stated = log.count("train_batch_tokens")
    lines = {step.line: step.step for step in log.steps}
    looks = {
        float(lines[score.line]): score.bpb.value
        for score in log.scores
        if score.stage is Stage.TRAINING and score.line in lines
    }
    return Course(
        name=name,
        train_nats=sorted(
            {float(s.step): s.train_nats.value for s in log.steps if s.train_nats}.items()
        ),
        val_bpb=sorted(looks.items()),
        seconds={
            float(step.step): step.time_ms.value / 1000
            for step in sorted(log.steps, key=lambda step: step.step)
            # Some dialects round to minutes, and say 0.0 for the first.
            if step.time_ms is not None and step.time_ms.value > 0
        },
        tokens_per_step=tokens_per_step or (stated.value if stated else 0.0),
        sizes=_sizes(log),
    )


def read_limited(path: Path, limit_bytes: int = FILE_LIMIT_BYTES) -> bytes:
    """A file of others, if it is not too large.

    Raises
        RecordError: it cannot be read or is larger than `limit_bytes`.
    """
    try:
        if (found := path.stat().st_size) > limit_bytes:
            raise RecordError(f"{path}: {found:,} bytes, at most {limit_bytes:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of `metrics.jsonl` that name a step; the last one may be half written."""
    if not path.is_file():
        return
    for line in read_limited(path).splitlines()[:_ROWS]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get("step")):
            yield {key: value for key, value in row.items() if _is_number(value)} | {
                key: value for key, value in row.items() if isinstance(value, dict)
            }


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """One number of every step that has it, by step."""
    found = {row["step"]: row[key] for row in rows if _is_number(row.get(key))}
    return sorted((float(step), float(value)) for step, value in found.items())


def _norms(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Norms are numbers, or a number for each group of parameters."""
    for kind in _NORMS:
        if points := _column(rows, kind):
            yield kind, points
        groups = {group for row in rows if isinstance(row.get(kind), dict) for group in row[kind]}
        for group in sorted(groups)[:8]:
            parts = [
                {"step": row["step"], group: row[kind].get(group)}
                for row in rows
                if isinstance(row.get(kind), dict)
            ]
            if points := _column(parts, group):
                yield f"{kind} {group}", points


def _sizes(log: Log) -> dict[str, float]:
    """Of packed weights: what is said later of a part replaces what was said before."""
    found = {size.part: float(size.bytes) for size in log.sizes}
    if {"code", "total"} <= found.keys():
        # A foreign log names the raw weights, too; what the total leaves is what was packed.
        found["model"] = found["total"] - found["code"]
    return {part: size for part, size in found.items() if size > 0}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
