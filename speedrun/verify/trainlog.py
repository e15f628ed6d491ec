"""What a `train.log` of our own trainer says, line by line; foreign lines are passed over.

The lines are those of `train.log`, `train.loop` and the packer. The judge does not import them: a
log is a file from a stranger, read with patterns that bound what they match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from speedrun.errors import SubmissionError

LOG_LIMIT_BYTES = 1 << 24
_N, _X = r"\d{1,15}", r"-?\d{1,9}\.\d{1,12}"
_STEP = rf"step:(?P<step>{_N})/(?P<max_steps>{_N})"
_TIME = rf"train_time:(?P<ms>{_N})ms"
_PATTERNS = {
    "step": rf"{_STEP} train_loss:{_X} {_TIME} step_avg:(?P<average_ms>{_X})ms",
    "look": rf"{_STEP} val_loss:{_X} val_bpb:{_X} {_TIME} step_avg:(?P<average_ms>{_X})ms",
    "resumed": rf"resumed:step:(?P<step>{_N}) {_TIME}",
    "stop": rf"stopping_early: (?:signal|wallclock_cap) {_TIME} {_STEP}",
    "batch": rf"train_batch_tokens:(?P<tokens>{_N}) train_seq_len:(?P<length>{_N}) .{{0,100}}",
    "seed": rf"seed:(?P<number>{_N})",
    "parameters": rf"model_params:(?P<number>{_N})",
    "device": r"step: [^,]{1,40}, [^,]{1,40}, \d{1,6} threads, (?P<device>[a-z]{1,20})\b.{0,100}",
    "counted": rf"counted_tokens:(?P<tokens>{_N}) {_TIME}",
    "model bytes": rf"Serialized model: (?P<number>{_N}) bytes",
    "code bytes": rf"Code size: (?P<number>{_N}) bytes",
    "total bytes": rf"Total submission size: (?P<number>{_N}) bytes",
    "score": rf"final_sliding_window_exact val_loss:(?P<nats>{_X}) val_bpb:(?P<bpb>{_X}) "
    rf"stride:(?P<stride>{_N}) eval_time:(?P<ms>{_N})ms",
}
_COMPILED = {kind: re.compile(pattern) for kind, pattern in _PATTERNS.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that was understood: its number in the file, its kind, and the values in it."""

    line: int
    kind: str
    text: dict[str, str]

    def __getitem__(self, name: str) -> float:
        return float(self.text[name])


@dataclass(frozen=True, slots=True)
class TrainLog:
    """The lines of the run that counts: what a resumed run did again is left out."""

    course: list[Entry]
    """Steps, looks at the validation text and the end, in order."""
    facts: list[Entry]
    """The other lines."""

    def last(self, kind: str) -> Entry | None:
        """The last line of a kind: a run that is packed again says its sizes again."""
        both = (*reversed(self.course), *reversed(self.facts))
        return next((entry for entry in both if entry.kind == kind), None)

    def all(self, *kinds: str) -> list[Entry]:
        """Lines of the course of these kinds."""
        return [entry for entry in self.course if entry.kind in kinds]


def parse_line(text: str) -> tuple[str, dict[str, str]] | None:
    """Kind and values of one line, or None if the trainer has no such line."""
    for kind, pattern in _COMPILED.items():
        if found := pattern.fullmatch(text):
            return kind, found.groupdict()
    return None


def read_train_log(path: Path) -> TrainLog:
    """Read a log of any origin.

    Raises
        SubmissionError: it cannot be read, or is too large to be one.
    """
    try:
        if path.stat().st_size > LOG_LIMIT_BYTES:
            raise SubmissionError(f"{path.name} is larger than {LOG_LIMIT_BYTES:,} bytes")
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise SubmissionError(f"{path.name} cannot be read: {error.strerror}") from error
    course: list[Entry] = []
    facts: list[Entry] = []
    for number, text in enumerate(lines, start=1):
        if (found := parse_line(text)) is None:
            continue
        entry = Entry(number, *found)
        if entry.kind in ("step", "look", "stop"):
            course.append(entry)
            continue
        facts.append(entry)
        # Steps after a checkpoint were lost with their time, and come again.
        while entry.kind == "resumed" and course:
            if course[-1].kind != "stop" and course[-1]["step"] <= entry["step"]:
                break
            course.pop()
    return TrainLog(course, facts)
