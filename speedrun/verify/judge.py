"""The judge: asks every rule, and measures the score itself over a predictor in a cell.

What is here never trains and never unpickles: a submission's code runs in `sandbox.Cell` only.

A verdict is made in four steps, each of which includes the one before: `static` reads files,
`score` lets a process answer for the whole validation split, `probe` asks a fresh process again for
what a cheat could not know twice, and `prove` has the text coded and decoded with the predictions.
"""

from __future__ import annotations

import math
import platform
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speedrun.bpb import score
from speedrun.data.dataset import Dataset
from speedrun.data.shards import open_shard
from speedrun.errors import (
    CoverageError,
    DataError,
    DistributionError,
    FormatError,
    PredictorError,
    PredictorLostError,
    SubmissionError,
)
from speedrun.files import sha256_file
from speedrun.tracks.load import SWITCHES, Track
from speedrun.verify import memory, rules
from speedrun.verify.contents import contents
from speedrun.verify.library import library_documents
from speedrun.verify.probes import FIX, PROBES, Audit, ask_nats
from speedrun.verify.proof import compare_text, prove
from speedrun.verify.provenance import provenance
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.rules import Declared, Rule
from speedrun.verify.sandbox import COUNTED, Cell, Limits, gpu_devices
from speedrun.verify.verdict import Measurement, RuleResult, Status, Verdict

Level = Literal["static", "score", "probe", "prove"]
LEVELS: tuple[Level, ...] = ("static", "score", "probe", "prove")
Progress = Callable[[str, int, int], None]
PREDICT = ["train_gpt.py", "predict", "model.srz"]
PROOF_TOKENS = 2_000
AUDIT_SHARE = 0.3
"""Flips and replays take this share of what scoring took; start-up and the rest come on top."""
AUDIT_SECONDS = 3.0
_READABLE = 4
"""Counted files beyond so many times the limit are not opened, let alone run."""
_CANARY_SEED = 7

_STATIC_RULES = ("hashes", "size", "claims", "training-time", "provenance", "container")
_SCORE_RULES = (
    *("predictor", "distribution", "coverage", "kind", "evaluation-time", "state-hash"),
    *("byte-count", "metric"),
)
_PROBE_RULES = (*PROBES, "document-splice", "memorisation", "speed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is judged, by which rules, on which text, and how it is asked."""

    folder: Path
    track: Track
    dataset: Dataset
    declared: Declared
    cell: Cell
    level: Level
    probe_seed: int
    proof_tokens: int | None
    """Tokens that are proven; None for all."""
    audit_seconds: float
    """What flips and replays take on top of `AUDIT_SHARE`."""
    progress: Progress | None

    @property
    def comparable(self) -> bool:
        """Whether this machine's seconds mean something on the track."""
        return self.track.num_gpus <= _num_gpus(self.track)

    def start(self, *, budget_s: float = math.inf) -> RemotePredictor:
        """A fresh process of the submission, to be entered."""
        return RemotePredictor(self.cell, PREDICT, budget_s=budget_s)

    def shown(self, what: str) -> Callable[[int, int], None] | None:
        """Progress of one part."""
        show = self.progress
        return (lambda done, total: show(what, done, total)) if show else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the scoring pass leaves for the probes."""

    measurement: Measurement
    nats: NDArray[np.float64]
    """Of each target."""


def verify_submission(
    folder: Path,
    track: Track,
    dataset: Dataset | None,
    *,
    level: Level = "score",
    limits: Limits | None = None,
    allow_unsandboxed: bool = False,
    probe_seed: int | None = None,
    proof_tokens: int | None = PROOF_TOKENS,
    audit_seconds: float = AUDIT_SECONDS,
    progress: Progress | None = None,
) -> Verdict:
    """Judge a submission folder: every rule of the level gets a result, broken or not.

    Args:
        folder: See `pack.submission` for its layout. Nothing is written into it.
        track: Limits and rules to judge by.
        dataset: The text to score; without it the rules that need it stay UNDECIDED.
        level: How deep to look; see the top of this file.
        limits: What the predictor's processes may take; by default they get the GPUs where the
            track has some.
        allow_unsandboxed: Run the code where bubblewrap does not work; the verdict then says so.
        probe_seed: Repeats the probes of another verdict; by default nobody can know it before.
        proof_tokens: How many tokens `prove` takes; None for the whole text.
        audit_seconds: How long to probe on top of a share of what scoring took.
        progress: Called with (what, targets scored, targets in all).

    Raises
        SubmissionError: the folder is not there.
    """
    if not folder.is_dir():
        raise SubmissionError(f"{folder} is not a folder; expected a submission")
    results, declared = [rules.files(folder)], None
    if rules.strange_files(folder):
        obstacle = "the folder holds links, hidden or special files, so nothing in it was read"
        results += [Rule(name).undecided(obstacle) for name in _STATIC_RULES]
    else:
        results += [
            rules.hashes(folder),
            rules.size(folder, track),
            rules.claims(folder, track),
            rules.training_time(folder, track),
            provenance(folder, track),
        ]
        if obstacle := _too_large(folder, track):
            results.append(Rule("container").undecided(obstacle))
        else:
            opened, declared = rules.container(folder)
            results.append(opened)
            obstacle = "" if declared else "model.srz does not open"
    measurement, isolation = None, "nothing was run"
    seed = secrets.randbits(63) if probe_seed is None else probe_seed
    if level != "static":
        if declared is None:
            fitting = Rule("data").undecided(f"not compared: {obstacle}")
        elif dataset is None:
            fitting = Rule("data").undecided("no validation text here", "get the track's corpus")
        else:
            fitting = rules.data(folder, track, dataset)
        results.append(fitting)
        if fitting.status is not Status.PASS:
            obstacle = obstacle or "the track's validation text is not here"
        if declared is None or dataset is None or obstacle:
            results += _not_run(level, f"not run: {obstacle}")
        else:
            try:
                with Cell(
                    folder,
                    limits=limits or Limits(devices=gpu_devices() if track.num_gpus else ()),
                    hidden_documents=library_documents(dataset),
                    allow_unsandboxed=allow_unsandboxed,
                ) as cell:
                    isolation = cell.isolation
                    results[1] = rules.same_files(cell.files, folder, results[1])
                    question = Question(
                        folder=folder,
                        track=track,
                        dataset=dataset,
                        declared=declared,
                        cell=cell,
                        level=level,
                        probe_seed=seed,
                        proof_tokens=proof_tokens,
                        audit_seconds=audit_seconds,
                        progress=progress,
                    )
                    answered, measurement = _run(question)
            except SubmissionError as error:
                answered = _not_run(level, f"not run: {error}")
            results += answered
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
        switches={name: track.is_on(name) for name in SWITCHES},
        probe_seed=seed if level in LEVELS[2:] else None,
    )


def _too_large(folder: Path, track: Track) -> str:
    """Why the counted files cannot even be opened, or nothing."""
    for name in COUNTED:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size > _READABLE * track.cap_bytes:
            return f"{name} has {path.stat().st_size:,} bytes, far over {track.cap_bytes:,}"
    return ""


def _not_run(level: Level, why: str) -> list[RuleResult]:
    """Every rule that needs the predictor, undecided."""
    names = list(_SCORE_RULES)
    if level in LEVELS[2:]:
        names += ["contents", *_PROBE_RULES]
    if level == "prove":
        names.append("proof")
    return [Rule(name).undecided(why) for name in names]


def _run(question: Question) -> tuple[list[RuleResult], Measurement | None]:
    """Results of all rules that need the predictor, and the measurement if it got to the end."""
    results, scored = _score(question)
    if question.level in LEVELS[2:] and scored is None:
        results.append(contents(question.cell.files, question.dataset))
        said = "not asked: the predictor did not finish"
        results += [Rule(name).undecided(said) for name in _PROBE_RULES]
    elif question.level in LEVELS[2:] and scored is not None:
        first, second = question.start(), question.start()
        try:
            # Imports are most of a small model's start. A GPU may not hold two models.
            if not question.track.num_gpus:
                first.launch()
                second.launch()
            results.append(contents(question.cell.files, question.dataset))
            results += _probe(question, scored, first, second)
        finally:
            first.end()
            second.end()
    if question.level == "prove":
        if scored is None:
            results.append(Rule("proof").undecided("not asked: the predictor did not finish"))
        else:
            results.append(_prove(question, scored))
    return results, scored.measurement if scored else None


def _score(question: Question) -> tuple[list[RuleResult], Scored | None]:
    """Results of `_SCORE_RULES`, and what was measured if the predictor got to the end."""
    track, folder = question.track, question.folder
    budget_s = track.eval_seconds if question.comparable else math.inf
    predictor = question.start(budget_s=budget_s)
    failed, scored = "", None
    error: PredictorError | None = None
    try:
        with predictor:
            scored, steady = _measure(predictor, question)
    except PredictorLostError as lost:
        failed, error = "predictor", lost
    except DistributionError as wrong:
        failed, error = "distribution", wrong
    except CoverageError as wrong:
        failed, error = "coverage", wrong
    except PredictorError as wrong:
        failed, error = "predictor", wrong
    times = rules.evaluation_time(
        track,
        scored.measurement.eval_seconds if scored else predictor.waited_s,
        finished=scored is not None,
        comparable=question.comparable,
        start_s=0.0 if track.is_on("start-up") else predictor.start_s,
    )
    if scored is not None:
        found = scored.measurement
        results = [
            Rule("predictor").result(
                True,
                f"{found.num_tokens:,} predictions",
                evidence=f"logits came through {predictor.transport}",
            ),
            Rule("distribution").result(
                True, f"{predictor.vocab_size:,} finite logits each", "normalised by the judge"
            ),
            Rule("coverage").result(
                found.num_tokens == len(scored.nats),
                f"{found.num_tokens:,} targets, once, in order",
                f"{len(scored.nats):,}",
            ),
            rules.kind(folder, found.kind, track),
            times,
            steady,
            rules.byte_count(question.dataset, track),
            rules.metric(folder, found, question.dataset),
        ]
        return results, scored
    fixes = {
        "predictor": "speak the protocol of predict.py",
        "distribution": "give finite logits; a token that cannot come gets a low one",
        "coverage": "answer for every position that is asked, in order",
    }
    said = {name: Rule(name).undecided("the predictor did not finish") for name in _SCORE_RULES}
    said["evaluation-time"] = times
    if isinstance(error, PredictorLostError):
        hint = "run `python train_gpt.py predict model.srz`"
        said[failed] = Rule(failed).undecided(str(error), hint)
    else:
        said[failed] = Rule(failed).result(False, evidence=str(error), fix=fixes[failed])
    return list(said.values()), None


def _measure(predictor: RemotePredictor, question: Question) -> tuple[Scored, RuleResult]:
    """The official score, and whether the predictor is what it was once it has scored."""
    dataset, evaluation = question.dataset, question.declared.evaluation
    tokens, num_bytes = dataset.val_tokens(), dataset.val_raw_bytes
    try:  # a padded alphabet is larger than the declared one; that must not exhaust the judge
        rules.check_evaluation(evaluation, predictor.vocab_size)
    except FormatError as error:
        raise PredictorError(str(error)) from error
    nats = np.full(len(tokens) - 1, np.nan)
    before = _canary(predictor, question)
    began_s = predictor.waited_s - predictor.start_s
    predictor.budget_s += began_s
    official = score(
        predictor,
        tokens,
        num_bytes=num_bytes,
        context=evaluation.context,
        stride=evaluation.stride,
        batch_windows=evaluation.batch_windows,
        progress=question.shown("sliding windows"),
        keep=nats,
    )
    eval_seconds = predictor.waited_s - began_s
    predictor.budget_s = predictor.waited_s + 120.0 + 4 * eval_seconds  # off its account
    chunked_bpb: float | None = None
    if predictor.kind == "fixed":
        steady = rules.state_hash(before, _canary(predictor, question))
        # To explain another claim, off its account: an honest one need not be scored twice.
        if evaluation.stride != evaluation.context and not rules.is_claimed(
            question.folder, official.bpb
        ):
            chunked_bpb = score(
                predictor,
                tokens,
                num_bytes=num_bytes,
                context=evaluation.context,
                stride=evaluation.context,
                batch_windows=evaluation.batch_windows,
                progress=question.shown("chunks"),
            ).bpb
    else:
        said = "an adaptive predictor learns; what it learns from is probed"
        steady = Rule("state-hash").result(True, "does not apply", evidence=said)
    token_bytes = dataset.val_token_bytes
    measurement = Measurement(
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
    return Scored(measurement=measurement, nats=nats), steady


def _canary(predictor: RemotePredictor, question: Question) -> NDArray[np.float64]:
    """Nats of a window of training text: the same before and after a fixed predictor has scored."""
    evaluation = question.declared.evaluation
    rng = np.random.default_rng(_CANARY_SEED)
    shards = [shard for shard in _training(question.dataset) if len(shard) > 2]
    text = np.asarray(shards[0][: evaluation.context + 1]) if shards else np.empty(0, np.uint16)
    if len(text) < 2:
        text = rng.integers(predictor.vocab_size, size=evaluation.context + 1).astype(np.uint16)
    return ask_nats(predictor, text[None, :-1].astype(np.int64), np.zeros(1, np.int64), text[1:])


def _training(dataset: Dataset) -> list[NDArray[np.uint16]]:
    return [open_shard(path) for path in dataset.train_shards]


def _probe(
    question: Question, scored: Scored, first: RemotePredictor, second: RemotePredictor
) -> list[RuleResult]:
    """Results of `_PROBE_RULES`, from two fresh processes."""
    dataset, declared = question.dataset, question.declared
    rng = np.random.default_rng(question.probe_seed)
    tokens, found = dataset.val_tokens(), scored.measurement
    training = _training(dataset)
    audit = Audit(tokens, scored.nats, declared.evaluation, rng, training)
    last: list[RuleResult] = []
    try:
        with first as predictor:
            predictor.budget_s = _patience(found)
            if predictor.kind != found.kind:
                raise PredictorError(f"was {found.kind} when it scored, now is {predictor.kind}")
            if predictor.kind == "fixed":
                seconds = AUDIT_SHARE * found.eval_seconds + question.audit_seconds
                audit.in_order(predictor, seconds=seconds)
            else:
                audit.adaptive(predictor)
        with second as predictor:
            predictor.budget_s = _patience(found)
            last.append(
                memory.memorisation(
                    predictor,
                    tokens,
                    scored.nats,
                    training,
                    declared.evaluation,
                    rng,
                    seconds=1.0 + 0.1 * found.eval_seconds,
                )
            )
            if predictor.kind == "fixed":
                audit.anyhow(predictor)
                last.append(
                    memory.document_splice(
                        predictor, tokens, scored.nats, dataset.bos_id, declared.evaluation, rng
                    )
                )
            else:
                said = "an adaptive predictor has learnt from the documents before"
                last.append(Rule("document-splice").result(True, "does not apply", evidence=said))
        results = audit.results()
    except PredictorError as error:
        # It answered when it was scored: what it does not answer again, it may not be credited.
        done = {result.id for result in last}
        said = f"the predictor that had scored the whole text did not answer again: {error}"
        results = [
            Rule(name).result(False, evidence=said, fix="answer every process alike")
            for name in _PROBE_RULES
            if name not in (*done, "speed")
        ]
    return [
        *results,
        *last,
        memory.speed(
            found.num_tokens, found.eval_seconds, declared.run.model if declared.run else None
        ),
    ]


def _patience(found: Measurement) -> float:
    """Seconds that further questions may take: far more than an honest predictor needs."""
    per_window_s = found.eval_seconds * found.stride / found.num_tokens
    return 120.0 + 4 * found.eval_seconds + 1_000 * per_window_s


def _prove(question: Question, scored: Scored) -> RuleResult:
    """The text, coded with the predictions, is as short as claimed and comes back."""
    rule, found, dataset = Rule("proof"), scored.measurement, question.dataset

    def start() -> RemotePredictor:
        # Adaptive predictors go through the whole text; others answer a question for each token.
        asked_s = found.eval_seconds * found.stride / found.num_tokens
        count = question.proof_tokens or found.num_tokens
        return question.start(budget_s=_patience(found) + 4 * asked_s * count)

    try:
        proof = prove(
            start,
            dataset.val_tokens(),
            scored.nats,
            evaluation=question.declared.evaluation,
            num_tokens=question.proof_tokens,
            rng=np.random.default_rng((question.probe_seed, 1)),
            # Two small models share a processor well; a GPU may not hold two.
            side_by_side=1 if found.kind == "adaptive" or question.track.num_gpus else 2,
            progress=question.shown("coding and decoding"),
        )
        text = compare_text(dataset, proof) if proof.is_decoded else None
    except (DataError, PredictorLostError) as error:
        return rule.undecided(str(error))
    except PredictorError as error:
        return rule.result(False, evidence=str(error), fix="answer one token at a time, too")
    if proof.kind != found.kind:
        evidence = f"was {found.kind} when it scored, {proof.kind} when it coded"
        return rule.result(False, evidence=evidence, fix="be of one kind")
    part = "all" if proof.is_complete else f"{len(proof.runs)} runs"
    measured = f"{proof.coded_bits:,} bits for {proof.num_tokens:,} tokens ({part})"
    limit = f"{proof.limit_bits:,.0f} bits, {proof.claimed_bits:,.0f} claimed"
    if text is None:
        evidence = f"a fresh process decodes another token than target {proof.first_wrong:,}"
        if proof.coded_bits > proof.limit_bits:
            evidence += "; and the code is longer than claimed"
        return rule.result(False, measured, limit, evidence=evidence, fix=FIX)
    if text.differs:
        evidence = f"the tokens of document {text.differs!r} spell another text than the split's"
        return rule.result(False, measured, limit, evidence=evidence, fix="prepare the data again")
    spelled = "the very bytes" if text.is_raw_text else "the same tokens (the tokenizer is lossy)"
    evidence = f"decoded by a fresh process to {spelled} in {proof.seconds:.1f} s"
    if not proof.holds:
        evidence = (
            f"{proof.ratio - 1:+.1%} longer than claimed when nothing after a token is shown; "
            f"target {proof.worst_target:,} is {proof.worst_bits:+.2f} bits off its claim"
        )
    return rule.result(proof.holds, measured, limit, evidence=evidence, fix=FIX)


def _num_gpus(track: Track) -> int:
    """GPUs of this machine; not asked for contests without."""
    if not track.num_gpus:
        return 0
    import torch

    return torch.cuda.device_count()
