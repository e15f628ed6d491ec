"""The judge: asks every rule, and measures the score itself over a predictor in a cell.

What is here never trains and never unpickles: a submission's code runs in `sandbox.Cell` only.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from speedrun.bpb import score
from speedrun.config import EvalConfig, RunConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import PredictorError, PredictorLostError, SubmissionError
from speedrun.files import sha256_file
from speedrun.tracks.load import Track
from speedrun.verify import rules
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.rules import Rule
from speedrun.verify.sandbox import COUNTED, Cell, Limits
from speedrun.verify.verdict import Measurement, RuleResult, Status, Verdict

Level = Literal["static", "score"]
Progress = Callable[[str, int, int], None]
_READABLE = 4
"""Counted files beyond so many times the limit are not opened, let alone run."""


def verify_submission(
    folder: Path,
    track: Track,
    dataset: Dataset | None,
    *,
    level: Level = "score",
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a submission folder: every rule of the level gets a result, broken or not.

    Args:
        folder: See `pack.submission` for its layout. Nothing is written into it.
        track: Limits and rules to judge by.
        dataset: The text to score; without it the rules that need it stay UNDECIDED.
        level: `static` reads files only, `score` also runs the predictor.
        limits: What the predictor's process may take.
        progress: Called with (what, targets scored, targets in all).

    Raises
        SubmissionError: the folder is not there.
    """
    if not folder.is_dir():
        raise SubmissionError(f"{folder} is not a folder; expected a submission")
    results, run = [rules.files(folder)], None
    if rules.strange_files(folder):
        obstacle = "the folder holds links, hidden or special files, so nothing in it was read"
        results += [Rule(name).undecided(obstacle) for name in _STATIC_RULES]
    else:
        results += [
            rules.hashes(folder),
            rules.size(folder, track),
            rules.claims(folder, track),
            rules.training_time(folder, track),
        ]
        if obstacle := _too_large(folder, track):
            results.append(Rule("container").undecided(obstacle))
        else:
            opened, run = rules.container(folder)
            results.append(opened)
            obstacle = "" if run else "model.srz does not open"
    measurement, isolation = None, "nothing was run"
    if level != "static":
        if run is None:
            fitting = Rule("data").undecided(f"not compared: {obstacle}")
        elif dataset is None:
            fitting = Rule("data").undecided("no validation text here", "get the track's corpus")
        else:
            fitting = rules.data(folder, track, dataset)
        results.append(fitting)
        if fitting.status is not Status.PASS:
            obstacle = obstacle or "the track's validation text is not here"
        if run is None or dataset is None or obstacle:
            results += [Rule(name).undecided(f"not run: {obstacle}") for name in _RUN_RULES]
        else:
            try:
                with Cell(folder, limits=limits) as cell:
                    isolation = cell.isolation
                    scored, measurement = _score(folder, track, dataset, run, cell, progress)
            except SubmissionError as error:
                scored = [Rule(name).undecided(f"not run: {error}") for name in _RUN_RULES]
            results += scored
    manifest = folder / "manifest.json"
    return Verdict(
        submission=folder.resolve().name,
        manifest_sha256=sha256_file(manifest) if results[0].status is Status.PASS else "",
        track=track.name,
        track_version=track.version,
        level=level,
        isolation=isolation,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        results=tuple(results),
        measurement=measurement,
    )


_STATIC_RULES = ("hashes", "size", "claims", "training-time", "container")
_RUN_RULES = ("predictor", "evaluation-time", "metric")


def _too_large(folder: Path, track: Track) -> str:
    """Why the counted files cannot even be opened, or nothing."""
    for name in COUNTED:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size > _READABLE * track.cap_bytes:
            return f"{name} has {path.stat().st_size:,} bytes, far over {track.cap_bytes:,}"
    return ""


def _score(
    folder: Path,
    track: Track,
    dataset: Dataset,
    run: RunConfig,
    cell: Cell,
    progress: Progress | None,
) -> tuple[list[RuleResult], Measurement | None]:
    """Results of `_RUN_RULES`, and the measurement if the predictor got to the end."""
    comparable = track.num_gpus <= _num_gpus(track)
    predictor = RemotePredictor(
        cell,
        ["train_gpt.py", "predict", "model.srz"],
        budget_s=track.eval_seconds if comparable else math.inf,
    )
    answers = Rule("predictor")
    try:
        with predictor:
            measurement = _measure(predictor, dataset, run.evaluation, track, progress)
    except PredictorLostError as error:
        results = [answers.undecided(str(error), "run `python train_gpt.py predict model.srz`")]
    except PredictorError as error:
        results = [
            answers.result(False, evidence=str(error), fix="speak the protocol of predict.py")
        ]
    else:
        results = [
            answers.result(True, f"{measurement.kind}, {measurement.num_tokens:,} predictions"),
            rules.evaluation_time(
                track, measurement.eval_seconds, finished=True, comparable=comparable
            ),
            rules.metric(folder, measurement),
        ]
        return results, measurement
    results += [
        rules.evaluation_time(track, predictor.waited_s, finished=False, comparable=comparable),
        Rule("metric").undecided("no score: the predictor did not finish"),
    ]
    return results, None


def _measure(
    predictor: RemotePredictor,
    dataset: Dataset,
    evaluation: EvalConfig,
    track: Track,
    progress: Progress | None,
) -> Measurement:
    tokens, num_bytes = dataset.val_tokens(), dataset.val_raw_bytes

    def shown(what: str) -> Callable[[int, int], None] | None:
        return (lambda done, total: progress(what, done, total)) if progress else None

    official = score(
        predictor,
        tokens,
        num_bytes=num_bytes,
        context=evaluation.context,
        stride=evaluation.stride,
        batch_windows=evaluation.batch_windows,
        progress=shown("sliding windows"),
    )
    eval_seconds = predictor.waited_s
    chunked_bpb: float | None = None
    if predictor.kind == "fixed":
        chunked_bpb = official.bpb
        if evaluation.stride != evaluation.context:
            predictor.budget_s += track.eval_seconds  # for our own curiosity, off its account
            chunked_bpb = score(
                predictor,
                tokens,
                num_bytes=num_bytes,
                context=evaluation.context,
                stride=evaluation.context,
                batch_windows=evaluation.batch_windows,
                progress=shown("chunks"),
            ).bpb
    token_bytes = dataset.val_token_bytes
    return Measurement(
        bpb=official.bpb,
        nats_per_token=official.nats_per_token,
        token_bpb=None if token_bytes == num_bytes else official.bpb * num_bytes / token_bytes,
        chunked_bpb=chunked_bpb,
        num_tokens=official.num_tokens,
        num_bytes=num_bytes,
        context=evaluation.context,
        stride=evaluation.stride,
        kind=predictor.kind,
        eval_seconds=eval_seconds,
        judge_seconds=official.seconds - official.model_seconds,
    )


def _num_gpus(track: Track) -> int:
    """GPUs of this machine; not asked for contests without."""
    if not track.num_gpus:
        return 0
    import torch

    return torch.cuda.device_count()
