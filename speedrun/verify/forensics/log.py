"""A training log as numbers with line numbers, whatever dialect it was written in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, partial
from pathlib import PurePosixPath

from speedrun.verify.forensics.figures import Figure
from speedrun.verify.forensics.findings import Finding, Severity

_NAME_SEEDS = (
    (re.compile(r"seed[_-]?(\d{1,9})(?!\d)"), True),
    (re.compile(r"(?:^|[_-])(\d{1,9})[_-]seed"), True),
    (re.compile(r"(?:^|[_-])s(\d{1,9})(?=[_.-]|$)"), False),
    (re.compile(r"(?:^|[_-])log[_-](\d{1,9})(?=[_.-]|$)"), False),
)


class Stage(IntEnum):
    """When a score was taken."""

    TRAINING = 0
    UNPACKED = 1
    PACKED = 2
    """Of the weights that ship: only these count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A line about a training step."""

    line: int
    step: int
    of: int = 0
    """Steps planned; 0 if the line does not say."""
    train_nats: Figure | None = None
    time_ms: Figure | None = None
    average_ms: Figure | None = None
    """Milliseconds per step so far."""
    tokens_per_s: Figure | None = None
    """Tokens per second so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A line with a validation score."""

    line: int
    label: str
    stage: Stage
    bpb: Figure
    nats: Figure | None = None
    eval_ms: Figure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes of code, of a model or of both."""

    line: int
    part: str
    """`code`, `model` or `total`."""
    tag: str
    """What the line says about them, e.g. `int8+zlib`; empty for weights that are not packed."""
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The line that ends training at the clock."""

    line: int
    step: int
    time_ms: Figure


@dataclass(kw_only=True)
class Log:
    """Everything that was recognised in one file; `dialects.read_log` fills it."""

    name: str
    """Path below the record's folder."""
    sha256: str = ""
    settings: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Last value and line of each setting."""
    steps: list[Step] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    stop: Stop | None = None
    calibrations_s: list[Figure] = field(default_factory=list)
    """How long collecting statistics for quantisation took."""
    self_generated: int = 0
    """Line that says calibration text comes from the model itself."""
    eval_totals_s: list[Figure] = field(default_factory=list)
    validation_tokens: Figure | None = None
    validation_documents: Figure | None = None
    limited: tuple[str, int] | None = None
    """A line that says an evaluation was cut short."""
    resumes: list[tuple[str, int]] = field(default_factory=list)
    """Lines that say training goes on from a checkpoint."""
    is_cut: bool = False
    """Is there more than is kept?"""
    admissions: list[tuple[str, int]] = field(default_factory=list)
    """Lines that speak of validation text used for anything but scoring."""

    @property
    def is_empty(self) -> bool:
        """Was nothing recognised?"""
        return not (self.steps or self.scores or self.stop)

    def count(self, name: str) -> Figure | None:
        """A setting that is a whole number."""
        text, line = self.settings.get(name, ("", 0))
        number = text.removesuffix(".0")
        return Figure(float(number), 0.0, line) if _is_count(number) else None

    def number(self, name: str) -> Figure | None:
        """A setting that is a number."""
        text, line = self.settings.get(name, ("", 0))
        try:
            value = float(text)
        except ValueError:
            return None
        return Figure(value, 0.0, line) if abs(value) < 1e18 else None

    @cached_property
    def written_seed(self) -> Figure | None:
        """The seed that the text states."""
        return self.count("seed")

    @cached_property
    def name_seed(self) -> tuple[int, bool] | None:
        """The seed that the file's name states, and whether it says so in as many words."""
        stem = PurePosixPath(self.name).name
        for pattern, is_plain in _NAME_SEEDS:
            if match := pattern.search(stem):
                return int(match[1]), is_plain
        return None

    @property
    def seed(self) -> int | None:
        """By its text, else by its name."""
        if self.written_seed is not None:
            return int(self.written_seed.value)
        return self.name_seed[0] if self.name_seed else None

    @cached_property
    def family(self) -> str:
        """The name without its seed: runs of one family differ in nothing else."""
        seed = re.escape(str(self.seed))
        return re.sub(rf"(?<!\d){seed}(?!\d)", "*", self.name, count=1)

    @cached_property
    def final(self) -> Score | None:
        """The last score of packed weights, from the line that shows most digits of it."""
        packed = [score for score in self.scores if score.stage is Stage.PACKED]
        if not packed:
            return None
        same = [score for score in packed if score.bpb.agrees(packed[-1].bpb)]
        return min(same, key=lambda score: score.bpb.half)

    @cached_property
    def num_steps(self) -> Figure | None:
        """Steps made."""
        ends = [(step.step, step.line) for step in self.steps]
        if self.stop is not None:
            ends.append((self.stop.step, self.stop.line))
        if not ends:
            return None
        step, line = max(ends)
        return Figure(float(step), 0.0, line)

    @cached_property
    def train_ms(self) -> Figure | None:
        """Milliseconds of training: the stop line's, else the last step's."""
        if self.stop is not None:
            return self.stop.time_ms
        times = [step.time_ms for step in self.steps if step.time_ms is not None]
        return max(times, key=lambda time: time.value, default=None)

    @cached_property
    def step_ms(self) -> Figure | None:
        """Milliseconds per step over the whole run."""
        if self.train_ms is None or self.num_steps is None or self.num_steps.value < 1:
            return None
        return self.train_ms.scaled(1 / self.num_steps.value)

    @cached_property
    def total(self) -> Size | None:
        """The artifact's size: totals of packed weights come after those of raw ones."""
        return next((size for size in reversed(self.sizes) if size.part == "total"), None)

    @property
    def sequence_length(self) -> int:
        """Longest window that is trained on or scored."""
        lengths = (self.count(f"{kind}_seq_len") for kind in ("train", "eval", "ttt_eval"))
        return max((int(length.value) for length in lengths if length), default=0)


def finding_in(log: Log, id: str, severity: Severity) -> Callable[..., Finding]:
    """The beginning of a finding about a log; the rest is given as keywords."""
    return partial(Finding, id=id, severity=severity, file=log.name)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15
