"""One function per rule: what a submission must satisfy, and how to mend what does not.

A rule never raises for what a submission holds; it answers FAIL, or UNDECIDED where this machine or
its data cannot tell. `judge` decides which rules are asked.
"""

from __future__ import annotations

import hashlib
import json
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedrun.clock import Phase, read_ledger
from speedrun.config import EvalConfig, RunConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import DataError, FormatError, SpeedrunError, SubmissionError
from speedrun.files import sha256_file
from speedrun.pack.container import read_container
from speedrun.pack.submission import counted_bytes, read_manifest
from speedrun.tracks.load import Track
from speedrun.verify.byte_counts import explain_claim
from speedrun.verify.verdict import Measurement, RuleResult, Status

Floats = NDArray[np.float64]

REQUIRED = (
    *("submission.json", "README.md", "model.srz", "train_gpt.py"),
    *("manifest.json", "logs/ledger.jsonl"),
)
CONDITIONS = {
    "C1": "causal: a prediction depends on the artifact and the tokens before it only",
    "C2": "normalised: one full distribution over the alphabet, fixed before the token is seen",
    "C3": "score first: only tokens that were scored may change any state",
    "C4": "one pass: each position counts exactly once, in order",
    "V5": "metric: nats / ln 2 / bytes of the raw UTF-8 text",
    "V6": "data: the whole validation split, and none of it in the artifact",
    "V7": "training fits its budget, with all phases",
    "V8": "evaluation fits its budget, with all phases",
    "V9": "size: shipped code and model on disk, in decimal bytes",
    "V10": "a record is significantly better than the one before it",
    "V11": "provenance: logs, code, artifact and claim belong together",
    "V12": "the predictor is of the kind that it declares, fixed or adaptive",
}
"""What makes a score valid; every rule is about one of them."""
_CONDITION = {
    **dict.fromkeys(("future-flip", "target-flip", "prefix-replay", "proof"), "C1"),
    **dict.fromkeys(("distribution", "batch-invariance", "stride-invariance"), "C2"),
    **dict.fromkeys(("repeated-call", "rank-invariance", "state-hash", "text-elsewhere"), "C3"),
    **dict.fromkeys(("predictor", "coverage"), "C4"),
    **dict.fromkeys(("metric", "byte-count"), "V5"),
    **dict.fromkeys(("data", "contents", "memorisation", "document-splice"), "V6"),
    **{"training-time": "V7", "evaluation-time": "V8", "speed": "V8"},
    **{"size": "V9", "files": "V9", "container": "V9"},
    "significance": "V10",
    **dict.fromkeys(("hashes", "claims", "parts", "provenance", "retrain"), "V11"),
    "kind": "V12",
}
FREE = ("data", "set-up", "warm-up", "compile", "validate", "checkpoint", "pack", "evaluate")
"""Phases that may be off the budget, besides what was discarded; whatever else a ledger names
counts, however it is marked."""
CALIBRATING = ("calibrate", "average")
"""The same where the track's ruling on calibration is on."""
CLAIM_TOLERANCE_BPB = 1e-4
"""Between the trainer's own score and ours: float rounding of other kernels stays below it."""
CLAIM_TOLERANCE_NATS = 1e-3
"""The same in nats per token."""
STATE_NATS = 1e-2
"""Between the same question before and after scoring."""
MAX_WINDOW_LOGITS = 1 << 29
"""Logits of one window: two GiB of float32."""
MAX_CALL_TOKENS = 1 << 22
_MAX_JSON = 1_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule's name, from which its three possible results are made."""

    id: str

    def result(self, holds: bool, measured: str = "", limit: str = "", **why: str) -> RuleResult:
        """PASS or FAIL; the fix is shown only with a FAIL."""
        if holds:
            why.pop("fix", None)
        status = Status.PASS if holds else Status.FAIL
        return RuleResult(
            id=self.id,
            status=status,
            condition=_CONDITION[self.id],
            measured=measured,
            limit=limit,
            **why,
        )

    def undecided(self, evidence: str, fix: str = "", measured: str = "") -> RuleResult:
        """Neither proven nor broken, as far as this machine can tell."""
        return RuleResult(
            id=self.id,
            status=Status.UNDECIDED,
            condition=_CONDITION[self.id],
            evidence=evidence,
            fix=fix,
            measured=measured,
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder; links are not followed."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def strange_files(folder: Path) -> list[str]:
    """Links, pipes, devices and hidden files: with any of them in the folder, nothing is read."""
    strange = []
    for path in _walk(folder):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            strange.append(f"{path.relative_to(folder).as_posix()} (not a plain file)")
        elif path.name.startswith("."):
            strange.append(f"{path.relative_to(folder).as_posix()} (hidden)")
    return strange


def files(folder: Path) -> RuleResult:
    """Everything that must be there is, and nothing else: no links, no hidden or unlisted files."""
    rule = Rule("files")
    found = {p.relative_to(folder).as_posix() for p in _walk(folder) if p.is_file()}
    wrong = strange_files(folder)
    if not wrong:
        wrong = [f"{name} (missing)" for name in REQUIRED if name not in found]
        try:
            listed = {*read_manifest(folder), "manifest.json"}
        except SubmissionError as error:
            wrong.append(str(error))
        else:
            wrong += [f"{name} (not in manifest.json)" for name in sorted(found - listed)]
            missing = listed - found - {*REQUIRED}
            wrong += [f"{name} (listed, not there)" for name in sorted(missing)]
    return rule.result(
        not wrong,
        f"{len(found)} files, {len(wrong)} wrong",
        "as manifest.json lists",
        evidence=_few(wrong),
        fix="build the folder again; edit nothing in it by hand",
    )


def hashes(folder: Path) -> RuleResult:
    """Every file is the one that the manifest lists."""
    rule = Rule("hashes")
    try:
        listed = read_manifest(folder)
        changed = [
            name
            for name, entry in sorted(listed.items())
            if (folder / name).lstat().st_size != entry.bytes
            or sha256_file(folder / name) != entry.sha256
        ]
    except (OSError, SubmissionError) as error:
        return rule.result(False, evidence=str(error), fix="build the folder again")
    return rule.result(
        not changed,
        f"{len(changed)} of {len(listed)} files changed",
        "0",
        evidence=_few(changed),
        fix="build the folder again; edit nothing in it by hand",
    )


def same_files(copies: Path, folder: Path, hashes: RuleResult) -> RuleResult:
    """`hashes` again, if the private copies that run are not the files that were hashed."""
    try:
        listed = read_manifest(folder)
        changed = [
            path.name
            for path in sorted(copies.iterdir())
            if path.name not in listed or sha256_file(path) != listed[path.name].sha256
        ]
    except (OSError, SubmissionError) as error:
        changed = [str(error)]
    if hashes.status is not Status.PASS or not changed:
        return hashes
    return Rule("hashes").result(
        False,
        f"{len(changed)} files changed",
        "0",
        evidence=f"changed while it was judged: {_few(changed)}",
        fix="leave the folder alone until the verdict is there",
    )


def size(folder: Path, track: Track) -> RuleResult:
    """Counted code and packed weights fit the track's limit."""
    rule = Rule("size")
    try:
        report = counted_bytes(folder, track)
    except (OSError, SpeedrunError) as error:
        return rule.result(False, evidence=str(error), fix="build the folder again")
    return rule.result(
        report.total <= track.cap_bytes,
        f"{report.total:,} bytes",
        f"{track.cap_bytes:,} bytes",
        evidence=f"code {report.code:,} + model {report.model:,}",
        fix=f"save {report.total - track.cap_bytes:,} bytes",
    )


def read_claims(folder: Path) -> dict[str, Any]:
    """The object in `submission.json`.

    Raises
        SubmissionError: missing, too large, or no JSON object.
    """
    path = folder / "submission.json"
    try:
        if path.stat().st_size > _MAX_JSON:
            raise SubmissionError(f"submission.json is larger than {_MAX_JSON:,} bytes")
        claims = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SubmissionError(f"submission.json cannot be read: {error}") from error
    if not isinstance(claims, dict):
        raise SubmissionError("submission.json holds no JSON object")
    return claims


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # `isfinite` fails for numbers of a thousand digits


def claims(folder: Path, track: Track) -> RuleResult:
    """The claim can be read: score, seed and size, and the track and rules version it is for."""
    rule = Rule("claims")
    try:
        found = read_claims(folder)
        counted = counted_bytes(folder, track).total
    except SubmissionError as error:
        return rule.result(False, evidence=str(error), fix="build the folder again")
    wrong = [
        f"{key} is {str(found.get(key))[:40]!r}, expected a number"
        for key in ("val_bpb", "val_loss", "seed")
        if not _is_number(found.get(key))
    ]
    if type(found.get("seed")) is not int or not 0 <= found["seed"] < 1 << 63:
        wrong.append(f"seed is {str(found.get('seed'))[:40]!r}, expected a whole number")
    wrong += [
        f"{key} is {str(found.get(key))[:40]!r}, expected {expected!r}"
        for key, expected in {
            "track": track.name,
            "track_version": track.version,
            "bytes_total": counted,
        }.items()
        if found.get(key) != expected
    ]
    return rule.result(
        not wrong,
        f"val_bpb {float(found['val_bpb']):.6f}" if not wrong else "",
        f"{track.name} v{track.version}",
        evidence="; ".join(wrong),
        fix="write these keys of submission.json, or judge on the track that it names",
    )


def counts(phase: Phase, track: Track) -> bool:
    """Whether a phase's seconds count against the training budget."""
    is_free = phase.name in FREE or phase.name.startswith("discarded ")
    if phase.name in CALIBRATING and not track.is_on("calibration"):
        is_free = True
    return phase.on_budget or not is_free


def training_time(folder: Path, track: Track) -> RuleResult:
    """The ledger's chain holds, and what it books on the budget fits the track's limit."""
    rule = Rule("training-time")
    try:
        phases = read_ledger(folder / "logs" / "ledger.jsonl")
    except (SubmissionError, RecursionError) as error:
        return rule.result(False, evidence=str(error), fix="hand in the ledger as it was written")
    spent_s = sum(p.seconds for p in phases if counts(p, track))
    trained_s = sum(p.seconds for p in phases if p.name == "train")
    return rule.result(
        trained_s > 0 and spent_s <= track.train_seconds,
        f"{spent_s:.3f} s",
        f"{track.train_seconds:.3f} s",
        evidence=f"{len(phases)} phases, {trained_s:.3f} s of them 'train'",
        fix="train again within the budget"
        if trained_s
        else "the ledger books no training; hand in the one of this run",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a `model.srz` says about the predictor that it belongs to."""

    evaluation: EvalConfig
    vocab_size: int
    run: RunConfig | None
    """The resolved recipe; None for a predictor of the user's own."""


def container(folder: Path) -> tuple[RuleResult, Declared | None]:
    """`model.srz` opens, and what it says about itself is enough to score it."""
    rule = Rule("container")
    try:
        meta, arrays = read_container((folder / "model.srz").read_bytes())
        if "run" in meta:
            run = RunConfig.from_dict(meta["run"])
            declared = Declared(evaluation=run.evaluation, vocab_size=run.model.vocab_size, run=run)
        else:
            asked = EvalConfig(**meta["evaluation"])
            declared = Declared(evaluation=asked, vocab_size=meta["vocab_size"], run=None)
        check_evaluation(declared.evaluation, declared.vocab_size)
    except (OSError, FormatError) as error:
        return rule.result(False, evidence=str(error), fix="pack the weights again"), None
    except (KeyError, TypeError, AttributeError, SpeedrunError) as error:
        return (
            rule.result(
                False,
                evidence=f"model.srz: its settings cannot be used: {error!s:.200}",
                fix="pack the weights again, with their recipe",
            ),
            None,
        )
    return rule.result(True, f"{len(arrays)} arrays, sha256 intact"), declared


def check_evaluation(evaluation: EvalConfig, vocab_size: int) -> None:
    """Refuse an evaluation whose calls would exhaust the judge.

    Raises
        FormatError: with what it asks for and what is allowed.
    """
    if type(vocab_size) is not int or not 2 <= vocab_size <= 65_536:
        raise FormatError(f"vocab_size {str(vocab_size)[:40]!r}, expected 2 to 65,536")
    for key in ("context", "stride", "batch_windows"):
        if type(getattr(evaluation, key)) is not int:
            raise FormatError(f"evaluation.{key} {str(getattr(evaluation, key))[:40]!r} is no int")
    tokens = evaluation.context * evaluation.batch_windows
    if evaluation.context * vocab_size > MAX_WINDOW_LOGITS or tokens > MAX_CALL_TOKENS:
        raise FormatError(
            f"evaluation asks for {evaluation.batch_windows:,} windows of {evaluation.context:,} "
            f"tokens at once; the judge allows {MAX_CALL_TOKENS:,} tokens and "
            f"{MAX_WINDOW_LOGITS // vocab_size:,} per window"
        )


def data(folder: Path, track: Track, dataset: Dataset) -> RuleResult:
    """The text scored here is the track's, intact, and the one that the submission trained for."""
    rule = Rule("data")
    published = track.fingerprint
    try:
        dataset.verify_validation()
        measured = (len(dataset.val_tokens()) - 1, dataset.val_raw_bytes)
        stated = read_claims(folder).get("data_fingerprint")
    except (DataError, SubmissionError) as error:
        return rule.undecided(str(error))
    expected = (published.validation_tokens, published.validation_bytes)
    if any(expected) and measured != expected:
        return rule.undecided(
            f"the text here has {measured[0]:,} targets and {measured[1]:,} bytes, the track "
            f"{expected[0]:,} and {expected[1]:,}",
            "fetch the track's corpus",
        )
    if stated != dataset.fingerprint:
        return rule.undecided(
            f"the submission was trained for data {str(stated)[:12]!r}, here is "
            f"{dataset.fingerprint[:12]!r}",
            "judge with the same corpus; `stdlib` is the same under the same Python version",
        )
    return rule.result(
        True,
        f"{measured[0]:,} targets, {measured[1]:,} bytes",
        evidence=f"fingerprint {dataset.fingerprint[:12]}",
    )


def kind(folder: Path, found: str, track: Track) -> RuleResult:
    """The predictor is of the kind that it was handed in as, and the track allows that kind."""
    rule = Rule("kind")
    try:
        stated = read_claims(folder).get("kind", "fixed")
    except SubmissionError as error:
        return rule.undecided(str(error))
    if found == "adaptive" and not track.is_on("adaptation"):
        return rule.result(
            False,
            found,
            "fixed",
            evidence=f"{track.name} does not allow adaptation",
            fix="be fixed",
        )
    return rule.result(
        stated == found,
        found,
        f"{str(stated)[:20]}, as declared",
        evidence="" if stated == found else "submission.json and the running predictor differ",
        fix="declare the kind that the predictor has",
    )


def byte_count(dataset: Dataset, track: Track) -> RuleResult:
    """The denominator is the raw text; how much of it the tokenizer accounts for is shown."""
    rule = Rule("byte-count")
    raw, counted = dataset.val_raw_bytes, dataset.val_token_bytes
    share = counted / raw
    lost = f"the tokenizer loses text: {raw - counted:,} bytes are credited and never predicted"
    return rule.result(
        counted == raw or track.is_on("lossy-tokenizer"),
        f"{raw:,} bytes of text, {share:.2%} in tokens",
        "raw UTF-8",
        evidence="" if counted == raw else lost,
        fix="take a tokenizer that loses nothing",
    )


def metric(folder: Path, measurement: Measurement, dataset: Dataset) -> RuleResult:
    """The score that the submission claims is the one that the judge measured."""
    rule = Rule("metric")
    try:
        claimed = read_claims(folder).get("val_bpb")
    except SubmissionError as error:
        return rule.undecided(str(error))
    measured = f"{measurement.bpb:.6f} bpb"
    if not _is_number(claimed):
        return rule.undecided("no claim to compare with", measured=measured)
    difference = measurement.bpb - float(claimed)  # type: ignore[arg-type]
    evidence = f"measured minus claimed: {difference:+.6f} bpb"
    loss = read_claims(folder).get("val_loss")
    if not (holds := is_claimed(folder, measurement.bpb)):
        if why := explain_claim(float(claimed), measurement, dataset):  # type: ignore[arg-type]
            evidence += f"; {why}"
    elif _is_number(loss):
        apart = measurement.nats_per_token - float(loss)  # type: ignore[arg-type]
        holds = abs(apart) <= CLAIM_TOLERANCE_NATS
        evidence += f", {apart:+.6f} nats per token"
    return rule.result(
        holds,
        measured,
        f"{claimed:.6f} ± {CLAIM_TOLERANCE_BPB:g}",
        evidence=evidence,
        fix="claim what `speedrun verify` measures",
    )


def is_claimed(folder: Path, bpb: float) -> bool:
    """Whether a submission claims this score."""
    try:
        claimed = read_claims(folder).get("val_bpb")
    except SubmissionError:
        return False
    return _is_number(claimed) and abs(bpb - float(claimed)) <= CLAIM_TOLERANCE_BPB  # type: ignore[arg-type]


def state_hash(before: Floats, after: Floats) -> RuleResult:
    """A fixed predictor answers about another text as it did before it scored.

    Shapes
        before, after  (n,)  nats of the same targets
    """
    rule = Rule("state-hash")
    digests = [hashlib.sha256(part.tobytes()).hexdigest()[:12] for part in (before, after)]
    worst = float(np.abs(before - after).max(initial=0.0))
    return rule.result(
        worst <= STATE_NATS,
        f"{digests[1]}, {worst:.2g} nats apart",
        f"{digests[0]}, {STATE_NATS:g} nats",
        evidence="" if worst <= STATE_NATS else "the predictor changed while it scored",
        fix="keep nothing between calls, or declare the predictor adaptive and learn in observe",
    )


def evaluation_time(
    track: Track, seconds: float, *, finished: bool, comparable: bool, start_s: float = 0.0
) -> RuleResult:
    """Scoring fits the track's limit; on lesser hardware, being too slow proves nothing.

    `start_s` seconds of them are not counted.
    """
    rule = Rule("evaluation-time")
    seconds -= start_s
    measured, limit = f"{seconds:.1f} s", f"{track.eval_seconds:.1f} s"
    if seconds < track.eval_seconds:
        if finished:
            return rule.result(True, measured, limit)
        return rule.undecided("the predictor did not get to the end of the text")
    if not comparable:
        return rule.undecided(
            f"took {measured} of {limit} on lesser hardware than {track.hardware}",
            f"judge on {track.hardware}",
            measured,
        )
    return rule.result(False, measured, limit, fix="a larger stride or a smaller model is faster")
