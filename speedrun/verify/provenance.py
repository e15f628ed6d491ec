"""Provenance (V11): log, ledger, claim, code and weights of a submission tell of one run.

All of it is written by whoever hands it in, so agreement proves little; a contradiction proves that
something was exchanged. Each is named with its file and line. Nothing is executed.
"""

from __future__ import annotations

import datetime
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from speedrun.clock import Phase, read_ledger
from speedrun.config import RunConfig
from speedrun.errors import FormatError, SpeedrunError, SubmissionError
from speedrun.pack.bundle import Bundle, read_bundle
from speedrun.pack.container import Header, read_header
from speedrun.pack.submission import CODE_NAME, MODEL_NAME
from speedrun.tracks.load import Track
from speedrun.verify.rules import CALIBRATING, Rule, read_claims
from speedrun.verify.trainlog import Entry, TrainLog, read_train_log
from speedrun.verify.verdict import RuleResult

LOG, LEDGER, CLAIMS = "logs/train.log", "logs/ledger.jsonl", "submission.json"
ALWAYS_LOGGED_STEPS = 10
"""As in `train.loop`: after these, one step in `train.log_every_steps` is logged."""
FREE_SETTINGS = ("seed", "train.budget_s")
"""What a bundle takes as an argument, so that its own recipe may say something else."""
_READABLE = 4
"""Counted files beyond so many times the limit are not opened."""
_MAX_LEDGER = 1 << 24
_SHOWN = 6
_SECONDS = 1e-3
"""The ledger rounds to microseconds, so a sum of its phases is a little off."""
_MILLISECONDS = 1.0
"""The log rounds to milliseconds."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A value and where it stands; None is a value that nobody gave."""

    where: str
    value: Any

    def __str__(self) -> str:
        match self.value:
            case int():
                shown = f"{self.value:,}"
            case float():
                shown = f"{self.value:,.8f}".rstrip("0").rstrip(".")
            case _:
                shown = repr(self.value)[:60]
        return f"{self.where} {shown}"


@dataclass
class _Facts:
    """What was compared so far."""

    agreeing: int = 0
    contradicting: int = 0
    shown: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)

    def check(self, holds: bool, contradiction: str) -> None:
        """One fact; only the first contradictions are kept, for there may be millions."""
        self.agreeing += holds
        self.contradicting += not holds
        if not holds and len(self.shown) < _SHOWN:
            self.shown.append(contradiction)

    def same(self, one: _Said, other: _Said, within: float = 0.0) -> None:
        """Two files name one thing; nothing is compared where one of them does not."""
        if one.value is None or other.value is None:
            return
        equal = one.value == other.value or (within and abs(one.value - other.value) <= within)
        self.check(bool(equal), f"{one}, {other}")


class _Claims:
    """`submission.json`, with the line of each of its keys."""

    def __init__(self, folder: Path) -> None:
        self._values = read_claims(folder)
        lines = (folder / CLAIMS).read_text("utf-8", "replace").split("\n")
        self._lines = {
            found[1]: number
            for number, line in enumerate(lines, start=1)
            if (found := re.match(r'\s*"([^"]{1,80})"\s*:', line))
        }

    def number(self, key: str) -> _Said:
        """A finite number; another rule asks whether it is there."""
        value = self._values.get(key)
        # Not `isfinite`, which fails for whole numbers of a thousand digits.
        sound = isinstance(value, int | float) and abs(value) < 1 << 53
        return _Said(self._where(key), value if sound and not isinstance(value, bool) else None)

    def text(self, key: str) -> _Said:
        """A string."""
        value = self._values.get(key)
        return _Said(self._where(key), value[:200] if isinstance(value, str) else None)

    def _where(self, key: str) -> str:
        line = f", line {self._lines[key]}" if key in self._lines else ""
        return f"{CLAIMS}{line}: {key}"


def provenance(folder: Path, track: Track) -> RuleResult:
    """What two files of a submission both say, they say alike.

    PASS where nothing contradicts; what could not be compared, as with a predictor that `speedrun`
    did not train and that has no such log, is in the evidence.
    """
    rule, facts = Rule("provenance"), _Facts()
    try:
        claims = _Claims(folder)
    except (OSError, SubmissionError) as error:
        return rule.undecided(f"nothing was compared: {error}")
    header, run = _read_model(folder, track, facts)
    bundle = _read_code(folder, track, facts)
    log, phases = _read_log(folder, facts), _read_phases(folder, facts)
    sizes = {
        name: path.stat().st_size
        for name in (CODE_NAME, MODEL_NAME)
        if (path := folder / name).is_file()
    }
    _compare_claims(facts, claims, sizes, run)
    if run is not None and bundle is not None:
        _compare_recipes(facts, claims, bundle.run, run)
    if header is not None and bundle is not None:
        facts.same(claims.number("model_params"), _Said(f"{MODEL_NAME} packs", _parameters(header)))
    if phases:
        is_ours = bundle is not None or log is not None
        _compare_ledger(facts, claims, phases, run, is_ours=is_ours)
    if log is not None:
        _compare_end(facts, log, claims)
        _compare_score(facts, log, claims, run)
        _compare_sizes(facts, log, sizes)
        _compare_course(facts, log, run)
        _compare_start(facts, log, claims, run)
        _compare_times(facts, log, phases)
    agreeing = f"{facts.agreeing:,} facts agree"
    if facts.contradicting:
        more = facts.contradicting - len(facts.shown)
        return rule.result(
            False,
            f"{facts.contradicting:,} contradictions, {agreeing}",
            "0 contradictions",
            evidence="; ".join(facts.shown) + (f"; and {more:,} more" if more else ""),
            fix="hand in log, ledger, claim, code and weights of one and the same run",
        )
    missing = f"not compared: {'; '.join(facts.not_compared)}" if facts.not_compared else ""
    if log is None and bundle is not None:
        return rule.undecided(missing, f"hand in the {LOG} that our trainer wrote", agreeing)
    if not facts.agreeing:
        return rule.undecided(missing or "no two files say the same thing")
    return rule.result(True, agreeing, "0 contradictions", evidence=missing)


# Reading: what cannot be read is the finding of another rule; here it is not compared.


def _read_counted(folder: Path, name: str, track: Track) -> bytes:
    if (size := (folder / name).stat().st_size) > _READABLE * track.cap_bytes:
        raise FormatError(f"{name} has {size:,} bytes")
    return (folder / name).read_bytes()


def _read_model(
    folder: Path, track: Track, facts: _Facts
) -> tuple[Header | None, RunConfig | None]:
    try:
        header = read_header(_read_counted(folder, MODEL_NAME, track))
        if "run" in header.meta:
            return header, RunConfig.from_dict(header.meta["run"])
        facts.not_compared.append(f"the recipe in {MODEL_NAME}, which has none")
        return header, None
    except (OSError, KeyError, TypeError, AttributeError, ValueError, SpeedrunError):
        facts.not_compared.append(f"the recipe in {MODEL_NAME}, which does not open")
        return None, None


def _read_code(folder: Path, track: Track, facts: _Facts) -> Bundle | None:
    try:
        return read_bundle(_read_counted(folder, CODE_NAME, track))
    except (OSError, FormatError) as error:
        facts.not_compared.append(f"the recipe in the code ({error!s:.100})")
        return None


def _read_log(folder: Path, facts: _Facts) -> TrainLog | None:
    try:
        log = read_train_log(folder / LOG)
    except SubmissionError as error:
        facts.not_compared.append(f"the course of training ({error})")
        return None
    if not log.course and log.last("score") is None:
        facts.not_compared.append(f"the course of training ({LOG} has no line of our trainer)")
        return None
    return log


def _read_phases(folder: Path, facts: _Facts) -> list[Phase]:
    try:
        if (folder / LEDGER).stat().st_size > _MAX_LEDGER:
            raise SubmissionError(f"it is larger than {_MAX_LEDGER:,} bytes")
        return read_ledger(folder / LEDGER)
    except (OSError, SubmissionError, RecursionError) as error:
        facts.not_compared.append(f"the ledger ({error!s:.100})")
        return []


# Comparing


def _compare_claims(
    facts: _Facts, claims: _Claims, sizes: dict[str, int], run: RunConfig | None
) -> None:
    """The claim against the files on disk and the recipe in the weights."""
    for key, name in (("bytes_code", CODE_NAME), ("bytes_model", MODEL_NAME)):
        facts.same(claims.number(key), _Said(f"{name} has", sizes.get(name)))
    facts.same(claims.number("seed"), _Said(f"{MODEL_NAME}: seed", run.seed if run else None))
    if (date := claims.text("date")).value is not None:
        try:
            datetime.datetime.fromisoformat(date.value)
        except ValueError:
            facts.check(False, f"{date} is no date")


def _compare_recipes(facts: _Facts, claims: _Claims, shipped: RunConfig, packed: RunConfig) -> None:
    """The recipe in the code against the one in the weights, and both against the claim."""
    settings = dict(_flat(shipped.to_dict()))
    for key, value in _flat(packed.to_dict()):
        if key not in FREE_SETTINGS:
            facts.same(_Said(f"{CODE_NAME}: {key}", settings[key]), _Said(MODEL_NAME, value))
    facts.same(claims.text("name"), _Said(f"{MODEL_NAME}: name", packed.name[:200]))
    steps, seconds = claims.number("step_stop"), claims.number("wallclock_seconds")
    most_steps, most_s = packed.train.max_steps, packed.train.budget_s
    if steps.value is not None:
        facts.check(steps.value <= most_steps, f"{steps}, train.max_steps is {most_steps:,}")
    if seconds.value is not None and most_s > 0:
        facts.check(seconds.value <= most_s + _SECONDS, f"{seconds}, train.budget_s is {most_s:g}")


def _parameters(header: Header) -> int:
    """Parameters in a container; scales and counted integers are none."""
    return sum(
        math.prod(shape)
        for name, dtype, shape, _ in header.arrays
        if name.endswith(":codes") or (dtype == "f2" and ":" not in name)
    )


def _compare_ledger(
    facts: _Facts,
    claims: _Claims,
    phases: Sequence[Phase],
    run: RunConfig | None,
    *,
    is_ours: bool,
) -> None:
    """Seconds, and where our trainer wrote it, steps and the order of phases, each a line."""
    # The claim is of training; calibration is booked beside it, and both fit the budget.
    booked_s = sum(p.seconds for p in phases if p.on_budget and p.name not in CALIBRATING)
    budgeted = _Said(f"{LEDGER}, lines 1 to {len(phases)}: on the budget", booked_s)
    facts.same(claims.number("wallclock_seconds"), budgeted, within=_SECONDS)
    trained = list(_steps_in(phases)) if is_ours else []
    if not trained:
        facts.not_compared.append(f"steps ({LEDGER} is not our trainer's)")
        return
    first_line, last_line, last = trained[0][0], trained[-1][0], trained[-1][1]
    facts.same(claims.number("step_stop"), _Said(f"{LEDGER}, line {last_line}: steps", last))
    for (_, before, _), (line, after, _) in pairwise(trained):
        facts.check(after >= before, f"{LEDGER}, line {line}: {after:,} steps after {before:,}")
    warm = run.train.warmup_steps if run else None
    for line, phase in enumerate(phases, start=1):
        where = f"{LEDGER}, line {line}: {phase.name!r:.40}"
        if phase.name == "warm-up":
            steps = _Said(f"{where} of steps", _count(phase.details.get("steps")))
            facts.same(steps, _Said(f"{MODEL_NAME}: train.warmup_steps", warm))
        if phase.name in ("pack", "evaluate"):
            facts.check(line > last_line, f"{where} before the training in line {last_line}")
    warmed = [line for line, phase in enumerate(phases, start=1) if phase.name == "warm-up"]
    if warmed:
        found = f"{LEDGER}, line {warmed[0]}: first 'warm-up' after training in line {first_line}"
        facts.check(warmed[0] < first_line, found)


def _steps_in(phases: Sequence[Phase]) -> Iterator[tuple[int, int, float]]:
    """(line, steps done, milliseconds on the budget so far) for each phase that counts steps."""
    spent_ms = 0.0
    for line, phase in enumerate(phases, start=1):
        spent_ms += 1000 * phase.seconds * phase.on_budget
        steps = _count(phase.details.get("steps"))
        if phase.name == "train" and steps is not None:
            yield line, steps, spent_ms


def _compare_end(facts: _Facts, log: TrainLog, claims: _Claims) -> None:
    """Where training stopped, by the log and by the claim."""
    stop, steps = log.last("stop"), log.all("step")
    counted, seconds = claims.number("step_stop"), claims.number("wallclock_seconds")
    if stop is not None:
        facts.same(counted, _said(stop, "step"))
        facts.same(seconds, _Said(_at(stop), stop["ms"] / 1000), within=_MILLISECONDS / 1000)
    elif steps:  # ended by count, which has no line of its own
        facts.same(counted, _said(steps[-1], "max_steps"))
    if steps and seconds.value is not None:
        late = steps[-1]["ms"] - 1000 * seconds.value
        facts.check(late <= _MILLISECONDS, f"{seconds}, {_said(steps[-1], 'ms')} ms")


def _compare_score(facts: _Facts, log: TrainLog, claims: _Claims, run: RunConfig | None) -> None:
    """The log's last score against the claim. The log has eight digits."""
    entry = log.last("score")
    if entry is None:
        facts.not_compared.append(f"the claimed score ({LOG} has none)")
        return
    facts.same(claims.number("val_bpb"), _said(entry, "bpb"), within=1e-8)
    facts.same(claims.number("val_loss"), _said(entry, "nats"), within=1e-8)
    took = _Said(_at(entry), entry["ms"] / 1000)
    facts.same(claims.number("eval_time_seconds"), took, within=_MILLISECONDS / 1000)
    stride = run.evaluation.stride if run else None
    facts.same(_said(entry, "stride"), _Said(f"{MODEL_NAME}: evaluation.stride", stride))


def _compare_sizes(facts: _Facts, log: TrainLog, sizes: dict[str, int]) -> None:
    """Sizes in the log against the files on disk."""
    found = {
        "model bytes": (f"{MODEL_NAME} has", sizes.get(MODEL_NAME)),
        "code bytes": (f"{CODE_NAME} has", sizes.get(CODE_NAME)),
        "total bytes": ("both files have", sum(sizes.values()) if len(sizes) == 2 else None),
    }
    for kind, (where, size) in found.items():
        if (entry := log.last(kind)) is not None:
            facts.same(_said(entry, "number", kind), _Said(where, size))


def _compare_course(facts: _Facts, log: TrainLog, run: RunConfig | None) -> None:
    """The lines of the log among themselves, and against the recipe."""
    steps = log.all("step", "look")
    for entry in steps:
        number = max(entry["step"], 1)
        average = _Said(f"{_at(entry)} train_time over step is", entry["ms"] / number)
        slack = 0.006 + 0.51 / number  # both numbers are rounded
        facts.same(average, _said(entry, "average_ms"), within=slack)
    for one, other in pairwise(steps):
        next_step = one["step"] + (one.kind == other.kind)
        forward = next_step <= other["step"] and one["ms"] <= other["ms"]
        found = f"{_said(other, 'step')} at {other['ms']:,.0f} ms"
        facts.check(forward, f"{found} follows {_said(one, 'step')} at {one['ms']:,.0f} ms")
    if run is None:
        return
    most = _Said(f"{MODEL_NAME}: train.max_steps", run.train.max_steps)
    for entry in log.course:
        facts.same(_said(entry, "max_steps"), most)
    every = run.train.log_every_steps
    for entry in log.all("step"):
        logged = entry["step"] <= ALWAYS_LOGGED_STEPS or entry["step"] % every == 0
        facts.check(logged, f"{_said(entry, 'step')}, train.log_every_steps is {every:,}")


def _compare_start(facts: _Facts, log: TrainLog, claims: _Claims, run: RunConfig | None) -> None:
    """Batch, seed, size of the network and device, as the log begins."""
    if (batch := log.last("batch")) is not None and run is not None:
        for name, label, key in (
            ("tokens", "train_batch_tokens", "tokens_per_step"),
            ("length", "train_seq_len", "sequence_length"),
        ):
            packed = _Said(f"{MODEL_NAME}: data.{key}", getattr(run.data, key))
            facts.same(_said(batch, name, label), packed)
    if (seed := log.last("seed")) is not None:
        facts.same(claims.number("seed"), _said(seed, "number", "seed"))
    if (parameters := log.last("parameters")) is not None:
        facts.same(claims.number("model_params"), _said(parameters, "number", "model_params"))
    device, hardware = log.last("device"), claims.text("hardware")
    if device is not None and hardware.value is not None:
        # The two forms of `hardware.hardware_name`; what else a person writes there is not ours.
        is_gpu, is_cpu = re.match(r"\d+x", hardware.value), "cores of" in hardware.value
        wrong = (is_gpu and device.text["device"] == "cpu") or (
            is_cpu and device.text["device"] == "cuda"
        )
        facts.check(not wrong, f"{hardware}, {_at(device)} {device.text['device']}")


def _compare_times(facts: _Facts, log: TrainLog, phases: Sequence[Phase]) -> None:
    """Where the ledger has so many steps in so much time, the log's lines fit in between."""
    marks = list(_steps_in(phases))
    for entry in log.all("step") if marks else ():
        place = bisect_left(marks, entry["step"], key=lambda mark: mark[1])
        for line, steps, ms in marks[max(place - 1, 0) : place + 1]:
            early = entry["ms"] <= ms + _MILLISECONDS
            late = entry["ms"] >= ms - _MILLISECONDS
            found = f"{_said(entry, 'step')} at {entry['ms']:,.0f} ms"
            facts.check(
                early if entry["step"] <= steps else late,
                f"{found}, {LEDGER}, line {line}: {steps:,} steps at {ms:,.0f} ms",
            )
    counted = [
        _Said(f"{LEDGER}, line {line}: tokens", _count(phase.details.get("tokens")))
        for line, phase in enumerate(phases, start=1)
        if phase.name == "count"
    ]
    if (told := log.last("counted")) is not None and counted:
        facts.same(_said(told, "tokens"), counted[-1])


def _at(entry: Entry) -> str:
    return f"{LOG}, line {entry.line}:"


def _said(entry: Entry, name: str, label: str = "") -> _Said:
    value = entry[name]
    return _Said(f"{_at(entry)} {label or name}", int(value) if value.is_integer() else value)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _flat(values: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `section.key`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{section}{key}.")
        else:
            yield section + key, value
