"""Reproduction: a submission's own training, run again in a cell and held against the claim.

In the cell are the code and the training shards, read-only, and an empty folder to write to: no
validation text, no network, and not the weights that were handed in. Two clocks are compared: the
ledger that the run writes, and the judge's own.
"""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedrun.bpb import score
from speedrun.clock import Phase, read_ledger
from speedrun.data.dataset import Dataset
from speedrun.errors import FormatError, PredictorError, PredictorLostError, SubmissionError
from speedrun.files import sha256_file
from speedrun.pack.bundle import read_bundle
from speedrun.pack.container import read_header
from speedrun.pack.submission import CODE_NAME, MODEL_NAME, counted_bytes
from speedrun.stats import reach_of_one_more
from speedrun.tracks.load import Track
from speedrun.verify import rules
from speedrun.verify.judge import PREDICT, Progress
from speedrun.verify.library import library_documents
from speedrun.verify.listener import Listener
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.rules import CLAIM_TOLERANCE_BPB, Declared, Rule
from speedrun.verify.sandbox import Cell, Limits, gpu_devices
from speedrun.verify.verdict import RuleResult

DEFAULT_SPREAD = 0.007
"""Spread of seeds, as a share of the score, where nothing is known. That of the first record of
`pocket` on a shared machine; the golf records of three seeds had 0.0002 to 0.0009."""
CONFIDENCE = 0.99
SLOWER = 0.95
"""With fewer than so many of the claimed steps in the same time, a machine is a slower one."""
SET_UP_S = 600.0
"""Least time allowed around the training: imports, compilation, packing. Otherwise the budget's.
Generous, for a busy machine: what the log and the ledger say about time is checked much closer."""
MOST_BYTES = 1 << 28
"""What a training may write, or four times the track's limit if that is more."""
_CLOCK_S, _CLOCK_FRAC = 2.0, 0.05
"""What the judge's clock may see more of training than the ledger books."""
_LEDGER_LIMIT_BYTES = 1 << 24
_TOO_SLOW = "raise --budget or lower "
"""How our trainer ends where not one step fits the budget."""

# In torchrun's place, which looks for `localhost`: in a cell no host has a name.
_TORCHRUN = """
import os, subprocess, sys, time
world, *command = sys.argv[1:]
where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": world}
ranks = []
for rank in map(str, range(int(world))):
    given = os.environ | where | {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    ranks.append(subprocess.Popen([sys.executable, "-I", "-B", "-u", *command], env=given))
while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
    time.sleep(0.05)
for rank in ranks if any(codes) else ():
    rank.kill()
sys.exit(max(map(abs, filter(None, codes)), default=0))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Where the score of one more run should lie, if the claim is honest."""

    mean: float
    reach: float
    """Above `mean` a score no longer fits; below it nothing is too good."""
    source: str
    """Where the spread is from."""


def expect(
    claim: float,
    *,
    claims: Sequence[float] = (),
    record: Sequence[float] = (),
    spread: float | None = None,
) -> Expected:
    """The upper end of a prediction interval for one new run, at `CONFIDENCE`.

    Args:
        claim: What this submission claims, in bpb.
        claims: What all submissions of the recipe claim, this one included.
        record: Scores of the standing record's seeds: another recipe, but a spread like ours.
        spread: Standard deviation over seeds, if somebody knows it.
    """
    known, degrees = (claims if len(claims) > 1 else [claim]), math.inf
    if spread is not None:
        source = f"a spread of {spread:g} as given"
    elif len(claims) > 1:
        spread, degrees = statistics.stdev(claims), len(claims) - 1
        source = f"the spread of the {len(claims)} seeds handed in, {spread:.4f}"
    elif len(record) > 1:
        spread, degrees = statistics.stdev(record), len(record) - 1
        source = f"the spread of the standing record's {len(record)} seeds, {spread:.4f}"
    else:
        spread = DEFAULT_SPREAD * claim
        source = f"a spread of {100 * DEFAULT_SPREAD:g} % of the score, for want of a measured one"
    reach = reach_of_one_more(spread, num_seeds=len(known), degrees=degrees, confidence=CONFIDENCE)
    return Expected(
        mean=statistics.fmean(known), reach=max(reach, CLAIM_TOLERANCE_BPB), source=source
    )


def retrain(
    folder: Path,
    track: Track,
    dataset: Dataset | None,
    *,
    claims: Sequence[float] = (),
    record: Sequence[float] = (),
    spread: float | None = None,
    limits: Limits | None = None,
    allow_unsandboxed: bool = False,
    set_up_s: float | None = None,
    progress: Progress | None = None,
) -> RuleResult:
    """The training in `train_gpt.py` gives a model as good as the claim, in the time allowed.

    FAIL where it does not run, overruns, hides time or scores worse than seeds differ; UNDECIDED
    where this machine is slower than the one of the claim, or where there is nothing to run.

    Args:
        folder: A submission whose files were checked. Nothing is written into it.
        track: Budgets and limits.
        dataset: The track's corpus.
        claims, record, spread: See `expect`.
        limits: What the training's processes may take; time and file sizes are set here.
        allow_unsandboxed: Run the code where bubblewrap does not work; the evidence then says so.
        set_up_s: Seconds allowed besides the budget; by default as many as the budget, or
            `SET_UP_S` if that is more.
        progress: Called with (what, targets scored, targets in all).
    """
    rule = Rule("retrain")
    try:
        task = _prepare(folder, track, dataset, limits, allow_unsandboxed)
        with tempfile.TemporaryDirectory(prefix="speedrun-retrain-") as place:
            allowed_s = set_up_s or max(SET_UP_S, track.train_seconds)
            course, declared = _train(task, Path(place), allowed_s)
            bpb = _score(task, declared, Path(place), progress)
    except _OpenError as found:
        return rule.undecided(*found.args)
    except SubmissionError as error:
        return rule.undecided(f"not run: {error}")
    except _BrokenError as found:
        evidence, fix = found.args
        if not task.is_comparable:
            return rule.undecided(evidence, f"judge on {track.hardware}")
        return rule.result(False, evidence=evidence, fix=fix)
    expected = expect(task.claim, claims=claims, record=record, spread=spread)
    measured = f"{bpb:.6f} bpb after {course.num_steps:,} steps"
    limit = f"<= {expected.mean:.6f} + {expected.reach:.6f} bpb"
    evidence = f"seed {task.seed}: {course}; claimed {task.claim:.6f}, {expected.source}"
    if bpb <= expected.mean + expected.reach:
        return rule.result(True, measured, limit, evidence=evidence)
    slower = course.num_steps < SLOWER * task.num_steps
    if slower or not task.is_comparable:
        from speedrun.hardware import hardware_name

        return rule.undecided(
            f"{evidence}; here {course.num_steps:,} steps on {hardware_name()}, claimed "
            f"{task.num_steps:,} on {task.hardware!r:.60}: a slower machine, or one that is busy, "
            "proves nothing",
            f"judge on hardware as fast as the claim's; {limit} would pass",
            measured,
        )
    return rule.result(
        False, measured, limit, evidence=evidence, fix="claim what the code reaches, over all seeds"
    )


class _OpenError(Exception):
    """(evidence, fix): nothing was proven."""


class _BrokenError(Exception):
    """(evidence, fix): the rule is broken, on hardware that is good enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is to be trained and what it claims."""

    folder: Path
    track: Track
    dataset: Dataset
    seed: int
    budget_s: float
    claim: float
    num_steps: int
    hardware: str
    num_processes: int
    is_comparable: bool
    """Whether this machine has the GPUs of the track."""
    limits: Limits
    allow_unsandboxed: bool

    def cell(self, stage: Path, limits: Limits) -> Cell:
        """Where code of the submission runs, validation documents of the library hidden."""
        return Cell(
            stage,
            limits=limits,
            hidden_documents=library_documents(self.dataset),
            allow_unsandboxed=self.allow_unsandboxed,
        )


@dataclass(frozen=True, slots=True)
class _Course:
    """How the training went, by both clocks."""

    phases: list[Phase]
    wall_s: float
    judged_s: float | None
    """Training as the judge's clock saw it between two lines of the log; None without lines."""
    isolation: str
    budgeted_s: float
    """Seconds that count, whatever the ledger marks them as."""

    @property
    def num_steps(self) -> int:
        """Steps that the ledger counts."""
        steps = [phase.details.get("steps") for phase in self.phases if phase.name == "train"]
        return max((step for step in steps if type(step) is int), default=0)

    @property
    def booked_s(self) -> float:
        """Seconds of all phases."""
        return sum(phase.seconds for phase in self.phases)

    def __str__(self) -> str:
        judged = "" if self.judged_s is None else f" ({self.judged_s:.1f} s by the judge's clock)"
        return (
            f"{self.budgeted_s:.3f} s on the budget{judged}, "
            f"{self.booked_s - self.budgeted_s:.1f} s booked off it, {self.wall_s:.1f} s in all, "
            f"in {self.isolation}"
        )


def _prepare(
    folder: Path,
    track: Track,
    dataset: Dataset | None,
    limits: Limits | None,
    allow_unsandboxed: bool,
) -> _Task:
    """Everything that has to be known before a process is started."""
    if dataset is None:
        raise _OpenError("no training shards here", "get the track's corpus")
    try:
        claims = rules.read_claims(folder)
        code = (folder / CODE_NAME).read_bytes()
        settings = read_header((folder / MODEL_NAME).read_bytes()).meta
    except (OSError, FormatError, SubmissionError) as error:
        raise _OpenError(f"not run: {error}", "") from error
    if not _can_train(code):
        raise _OpenError(
            f"{CODE_NAME} holds no training code: it knows no --data, --out, --seed and --budget",
            "ship the code that trained it, or publish how it was made",
        )
    seed, claim = claims.get("seed"), claims.get("val_bpb")
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise _OpenError("submission.json names no seed to train with", "")
    if isinstance(claim, bool) or not isinstance(claim, int | float) or not 0 < claim < 1e6:
        raise _OpenError("submission.json names no score to reproduce", "")
    stated = claims.get("data_fingerprint")
    if stated != dataset.fingerprint:
        raise _OpenError(
            f"trained on data {str(stated)[:12]!r}, here is {dataset.fingerprint[:12]!r}",
            "retrain with the same corpus",
        )
    for entry in dataset.manifest.shards if dataset.manifest else ():
        if entry.split == "train" and sha256_file(dataset.folder / entry.file) != entry.sha256:
            raise _OpenError(f"{entry.file} was altered", "prepare the dataset again")
    for path in dataset.train_shards:
        # In the cell the reader may be a user that nobody is.
        if os.geteuid() == 0 and not path.stat().st_mode & stat.S_IROTH:
            raise _OpenError(f"{path.name} is not for everybody to read", f"chmod o+r {path}")
    visible = _visible_gpus(track)
    steps = claims.get("step_stop")
    return _Task(
        folder=folder,
        track=track,
        dataset=dataset,
        seed=seed,
        budget_s=min(_own_budget_s(settings), track.train_seconds),
        claim=claim,
        num_steps=steps if type(steps) is int else 0,
        hardware=str(claims.get("hardware")),
        num_processes=max(min(track.num_gpus, visible), 1),
        is_comparable=visible >= track.num_gpus,
        limits=limits or Limits(devices=gpu_devices() if track.num_gpus else ()),
        allow_unsandboxed=allow_unsandboxed,
    )


def _own_budget_s(settings: dict[str, Any]) -> float:
    """What was trained on less than the track allows is trained again on less."""
    try:
        budget_s = settings["run"]["train"]["budget_s"]
        return float(budget_s) if 0 < budget_s < math.inf else math.inf
    except (KeyError, TypeError, OverflowError):
        return math.inf


def _can_train(code: bytes) -> bool:
    """Whether the code reads the arguments that a training is started with."""
    try:
        text = "\n".join(read_bundle(code).sources.values())
    except FormatError:
        text = code.decode("utf-8", "replace")
    return all(option in text for option in ("--data", "--out", "--seed", "--budget"))


def _visible_gpus(track: Track) -> int:
    if not track.num_gpus:
        return 0
    import torch

    return torch.cuda.device_count()


def _train(task: _Task, place: Path, set_up_s: float) -> tuple[_Course, Declared]:
    """Run the training; the new submission is in `place / "stage"` afterwards."""
    stage, out = place / "stage", place / "out"
    stage.mkdir()
    out.mkdir()
    out.chmod(0o777)  # inside, the writer may be another user
    (stage / CODE_NAME).write_bytes((task.folder / CODE_NAME).read_bytes())
    (stage / MODEL_NAME).touch()  # not the one handed in, which could be handed out again
    largest = max(4 * task.track.cap_bytes, MOST_BYTES)
    limits = dataclasses.replace(task.limits, file_bytes=largest, wall_s=task.budget_s + set_up_s)
    with task.cell(stage, limits) as cell:
        arguments = [
            *_launcher(task.num_processes),
            *("--data", cell.inside("training"), "--out", cell.inside("out")),
            *("--seed", str(task.seed), "--budget", repr(task.budget_s)),
        ]
        shards = {f"training/{path.name}": path for path in task.dataset.train_shards}
        with cell.start(arguments, readable=shards, writable={"out": out}) as process:
            heard = Listener(process, out, limit_bytes=largest)
            heard.to_the_end()
    if _TOO_SLOW in heard.problem:
        raise _OpenError(
            f"the training {heard.problem}: this machine is slower than the claim's, or busy",
            f"judge on {task.track.hardware}",
        )
    if heard.problem:
        raise _BrokenError(
            f"the training {heard.problem}",
            f"`python {CODE_NAME} --data … --out … --seed {task.seed} --budget "
            f"{task.budget_s:g}` has to end by itself within the track's limits",
        )
    declared = _take_model(out / MODEL_NAME, stage, task.track)
    phases = _read_phases(out)
    course = _Course(
        phases,
        heard.wall_s,
        _judged_s(heard, phases),
        cell.isolation,
        sum(phase.seconds for phase in phases if rules.counts(phase, task.track)),
    )
    _check_time(course, task, set_up_s)
    return course, declared


def _launcher(num_processes: int) -> list[str]:
    """What starts the code: once, or once for each GPU."""
    if num_processes == 1:
        return [CODE_NAME]
    return ["-c", _TORCHRUN, str(num_processes), CODE_NAME]


def _take_model(path: Path, stage: Path, track: Track) -> Declared:
    """Copy the trained model beside the code, if it is a file that may count."""
    try:
        status = path.lstat()
    except OSError as error:
        raise _BrokenError(
            f"the training ended without writing {MODEL_NAME}: {error.strerror}",
            f"write {MODEL_NAME} into the folder that --out names",
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > track.cap_bytes:
        raise _BrokenError(
            f"the training wrote a {MODEL_NAME} that is no plain file of at most "
            f"{track.cap_bytes:,} bytes: {status.st_size:,} bytes",
            "train a smaller model",
        )
    (stage / MODEL_NAME).write_bytes(path.read_bytes())
    counted = counted_bytes(stage, track).total
    if counted > track.cap_bytes:
        raise _BrokenError(
            f"code and retrained model have {counted:,} bytes, the track allows "
            f"{track.cap_bytes:,}",
            f"save {counted - track.cap_bytes:,} bytes: seeds differ in size",
        )
    opened, declared = rules.container(stage)
    if declared is None:
        raise _BrokenError(
            f"the retrained {MODEL_NAME} does not open: {opened.evidence}", opened.fix
        )
    return declared


def _read_phases(out: Path) -> list[Phase]:
    path = out / "ledger.jsonl"
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LEDGER_LIMIT_BYTES:
            raise SubmissionError("ledger.jsonl is no plain file of a ledger's size")
        return read_ledger(path)
    except (OSError, SubmissionError, RecursionError) as error:
        raise _BrokenError(
            f"the training left no ledger, so nobody knows what its time went into: {error!s:.100}",
            "book every phase in ledger.jsonl, next to the model",
        ) from error


def _judged_s(heard: Listener, phases: Sequence[Phase]) -> float | None:
    """Seconds of training by the judge's clock: up to the first timed line and on to the last.

    What the ledger books off the budget in between is not counted; the time allowed besides the
    budget bounds that. None if the log has fewer than two such lines.
    """
    if len(heard.marks) < 2:
        return None
    (first_s, first_log_s), (last_s, _) = heard.marks
    begun = next((i for i, phase in enumerate(phases) if phase.on_budget), len(phases))
    off_s = sum(phase.seconds for phase in phases[begun:] if not phase.on_budget)
    return first_log_s + last_s - first_s - off_s


def _check_time(course: _Course, task: _Task, set_up_s: float) -> None:
    """The ledger keeps the budget, and agrees with the judge's clock as far as that can tell."""
    slack_s = max(_CLOCK_S, _CLOCK_FRAC * course.budgeted_s)
    unbooked_s = course.wall_s - course.booked_s
    if course.num_steps < 1 or course.budgeted_s <= 0:
        problem = "the ledger books no steps"
    elif course.budgeted_s > task.budget_s + 1e-3:
        problem = "the budget is overrun"
    elif course.judged_s is not None and course.judged_s > course.budgeted_s + slack_s:
        problem = "the judge's clock saw more training than the ledger books"
    elif unbooked_s < -slack_s:
        problem = "the ledger books more time than passed"
    elif unbooked_s > set_up_s / 2:
        problem = f"{unbooked_s:.1f} s are in no phase of the ledger"
    else:
        return
    raise _BrokenError(f"{problem}: {course}; budget {task.budget_s:g} s", "keep an honest clock")


def _score(task: _Task, declared: Declared, place: Path, progress: Progress | None) -> float:
    """The judge's own measurement of the retrained model."""
    dataset, evaluation = task.dataset, declared.evaluation
    shown = (lambda done, total: progress("retrained", done, total)) if progress else None
    # How long evaluation takes was judged with the model handed in; here it only has to end.
    patience_s = task.track.eval_seconds + SET_UP_S if task.is_comparable else math.inf
    try:
        with (
            task.cell(place / "stage", task.limits) as cell,
            RemotePredictor(cell, PREDICT, budget_s=patience_s) as predictor,
        ):
            return score(
                predictor,
                dataset.val_tokens(),
                num_bytes=dataset.val_raw_bytes,
                context=evaluation.context,
                stride=evaluation.stride,
                batch_windows=evaluation.batch_windows,
                progress=shown,
            ).bpb
    except PredictorLostError as error:
        raise _OpenError(f"the retrained model was not scored: {error}", "") from error
    except PredictorError as error:
        raise _BrokenError(f"the retrained model does not predict: {error}", "") from error
