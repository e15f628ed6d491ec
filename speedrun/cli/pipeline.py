"""The main job, told once: train inside the budget, pack, score, write the submission, have it judged.

`run_once` is the story; what it leaves on disk is the run folder of `design` (see ARCHITECTURE.md).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import tomli_w
from torch import Tensor

from speedrun.bpb import Score, score
from speedrun.clock import Clock, Ledger, read_ledger
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.data.dataset import Dataset, check_vocab
from speedrun.errors import DataError, OutputError, PackError, SpeedrunError
from speedrun.files import write_atomic
from speedrun.hardware import describe_machine
from speedrun.pack.bundle import build_bundle
from speedrun.pack.submission import SubmissionFacts, write_submission
from speedrun.pack.weights import pack_weights
from speedrun.predict import ModelPredictor, Predictor
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe, write_recipe
from speedrun.records.runs import RunRow, append_run
from speedrun.standalone import load_predictor
from speedrun.tracks.load import Track, load_track
from speedrun.train.checkpoint import Checkpoints
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained, train
from speedrun.verify.judge import verify_submission
from speedrun.verify.verdict import Verdict, write_verdict

if TYPE_CHECKING:
    from speedrun.model.gpt import GPT

LOOK_TOKENS = 65_537
"""Validation tokens that a look between steps scores: enough for two digits, a second on a CPU."""


class Interrupted(SpeedrunError):
    """A signal ended the run; its checkpoint is usable."""

    exit_code = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A submission folder that was just written."""

    folder: Path
    model_bytes: int
    code_bytes: int
    score: Score
    """The trainer's own, of the packed weights."""

    @property
    def total_bytes(self) -> int:
        """What counts against the limit."""
        return self.model_bytes + self.code_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that went all the way."""

    folder: Path
    run: RunConfig
    trained: Trained
    packed: Packed
    verdict: Verdict


def prepare_folder(run: RunConfig, track: Track, parent: Path, resume: Path | None) -> Path:
    """The run folder: a new one named after time, recipe and seed, or the one to resume.

    Raises
        OutputError: the folder cannot be made.
    """
    if resume is not None:
        return resume
    stamp = datetime.datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S")
    folder = parent / f"{stamp}-{run.name.replace('/', '-')}-s{run.seed}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the run folder: {error.strerror}") from error
    write_recipe(folder / "recipe.toml", run)
    write_atomic(folder / "track.toml", tomli_w.dumps(track.to_dict()).encode())
    return folder


def default_author() -> str:
    """Name to hand in under, when none is given."""
    return os.environ.get("SPEEDRUN_AUTHOR", "anonymous")


def read_folder(folder: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, Track]:
    """The resolved recipe (with overrides laid over it) and the track of an existing run folder.

    Raises
        ConfigError: it is no run folder, or one of the two was edited into nonsense.
    """
    return load_recipe(str(folder / "recipe.toml"), overrides), load_track(
        str(folder / "track.toml")
    )


def run_once(
    run: RunConfig,
    track: Track,
    dataset: Dataset,
    folder: Path,
    *,
    echo: Callable[[str], None],
    on_step: Callable[[float, float, float], None],
    author: str,
) -> Finished:
    """Train, pack, score and judge one run in `folder`, continuing where it was interrupted.

    Raises
        Interrupted: a signal came; the checkpoint is on disk.
        SpeedrunError: whatever a part of the story refuses.
    """
    check_vocab(dataset, run.model.vocab_size)
    machine = describe_machine()
    write_atomic(folder / "environment.json", json.dumps(machine, indent=2).encode())
    clock = Clock(run.train.budget_s, Ledger(folder / "ledger.jsonl"))
    log = RunLog(folder, echo, on_step)
    trained = _train(run, dataset, clock, log, Checkpoints(folder, run))
    if trained.interrupted:
        raise Interrupted(
            f"interrupted after {trained.steps:,} steps; the checkpoint is saved, go on with: "
            f"speedrun run --resume {folder}"
        )
    _write_weights(folder / "weights.safetensors", trained)
    packed = pack_run(
        run,
        track,
        dataset,
        folder,
        trained.weights,
        out=folder / "submission",
        cap_bytes=track.cap_bytes,
        author=author,
        clock=clock,
        log=log,
    )
    echo("judging the submission in a process of its own")
    verdict = verify_submission(packed.folder, track, dataset)
    write_verdict(verdict, folder / "verdict.json")
    append_run(
        RunRow(
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            folder=folder.name,
            recipe=run.name,
            track=track.name,
            track_version=track.version,
            seed=run.seed,
            val_bpb=verdict.measurement.bpb if verdict.measurement else None,
            num_bytes=packed.total_bytes,
            num_steps=trained.steps,
            train_seconds=round(trained.seconds, 6),
            verdict=verdict.status.value,
            hardware=machine["hardware"],
        ),
        folder.parent,
    )
    return Finished(
        folder=folder,
        run=run,
        trained=trained,
        packed=packed,
        verdict=verdict,
    )


def pack_run(
    run: RunConfig,
    track: Track,
    dataset: Dataset,
    folder: Path,
    weights: dict[str, Tensor],
    *,
    out: Path,
    cap_bytes: int,
    author: str,
    clock: Clock | None = None,
    log: RunLog | None = None,
) -> Packed:
    """Pack the weights of the run in `folder`, score them, and write the submission to `out`.

    With a clock, packing and scoring are booked in its ledger before that is copied.

    Raises
        PackError: more than `cap_bytes`; nothing is written.
        OutputError: the submission cannot be written; an older one is then still there.
    """
    clock = clock or Clock(run.train.budget_s, Ledger(None))
    log = log or RunLog()
    ledger = read_ledger(folder / "ledger.jsonl")
    trained = [phase for phase in ledger if phase.on_budget]
    machine = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    with clock.phase("pack"):
        packed = pack_weights(weights, run.quant, {"run": run.to_dict()})
        bundle = build_bundle(run)
    total = len(packed) + len(bundle)
    log.line(f"Serialized model: {len(packed)} bytes")
    log.line(f"Code size: {len(bundle)} bytes")
    log.line(f"Total submission size: {total} bytes")
    if total > cap_bytes:
        raise PackError(
            f"model.srz {len(packed):,} + train_gpt.py {len(bundle):,} = {total:,} bytes, "
            f"{total - cap_bytes:,} over the limit of {cap_bytes:,}; "
            "use fewer bits (quant.matrix_bits) or a smaller model"
        )
    with clock.phase("evaluate"):
        result = score_packed(packed, dataset)
    log.line(
        f"final_sliding_window_exact val_loss:{result.nats_per_token:.8f} "
        f"val_bpb:{result.bpb:.8f} stride:{run.evaluation.stride} "
        f"eval_time:{1000 * result.seconds:.0f}ms"
    )
    with _replaced(out):
        write_submission(
            out,
            run=run,
            weights_bytes=packed,
            bundle=bundle,
            facts=SubmissionFacts(
                author=author,
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
                val_bpb=result.bpb,
                val_loss=result.nats_per_token,
                step_stop=max(phase.details.get("steps", 0) for phase in trained),
                wallclock_seconds=sum(phase.seconds for phase in trained),
                eval_time_seconds=result.seconds,
                model_params=sum(tensor.numel() for tensor in weights.values()),
                hardware=machine["hardware"],
                pytorch_version=machine["torch"],
                data_fingerprint=dataset.fingerprint,
            ),
            logs={name: folder / name for name in ("train.log", "ledger.jsonl")},
            track=track,
        )
    return Packed(folder=out, model_bytes=len(packed), code_bytes=len(bundle), score=result)


@contextmanager
def _replaced(folder: Path) -> Iterator[None]:
    """Move an older folder out of the way for the block; it comes back if the block fails."""
    older = folder.with_name(f".{folder.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    if folder.exists():
        folder.rename(older)
    try:
        yield
    except BaseException:
        if older.exists():
            older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


def score_packed(packed: bytes, dataset: Dataset) -> Score:
    """The trainer's own official score of packed weights, in this process."""
    run, predictor = load_predictor(packed)
    return _score(predictor, run, dataset.val_tokens(), dataset.val_raw_bytes)


def _train(
    run: RunConfig, dataset: Dataset, clock: Clock, log: RunLog, checkpoints: Checkpoints
) -> Trained:
    batches = open_batches(dataset.train_shards, run)

    def look(model: GPT, step: int) -> None:
        tokens = dataset.val_tokens()
        part = tokens[:LOOK_TOKENS]
        # A part of the text has a part of the bytes: good enough to watch, never the result.
        num_bytes = max(round(dataset.val_raw_bytes * len(part) / len(tokens)), 1)
        chunked = dataclasses.replace(
            run, evaluation=dataclasses.replace(run.evaluation, stride=run.evaluation.context)
        )
        seen = _score(ModelPredictor(model, run.model.vocab_size), chunked, part, num_bytes)
        log.validation(
            step=step,
            max_steps=run.train.max_steps,
            loss_nats=seen.nats_per_token,
            bpb=seen.bpb,
            elapsed_s=clock.elapsed_s,
        )

    with _signals_noted() as was_signalled:
        return train(
            run,
            batches,
            clock,
            Ranks.from_environment(),
            log,
            checkpoints=checkpoints,
            validate=look,
            should_stop=was_signalled,
        )


def _score(predictor: Predictor, run: RunConfig, tokens: Any, num_bytes: int) -> Score:
    return score(
        predictor,
        tokens,
        num_bytes=num_bytes,
        context=run.evaluation.context,
        stride=run.evaluation.stride,
        batch_windows=run.evaluation.batch_windows,
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Averaged weights of a finished run.

    Raises
        DataError: the file is missing or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no readable weights: {error}; was the run finished?") from error


def _write_weights(path: Path, trained: Trained) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in trained.weights.items()}
    write_atomic(path, save(tensors, metadata={"steps": str(trained.steps)}))


@contextmanager
def _signals_noted() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM are noted once, for the loop to obey; a second one acts as usual."""
    noted: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
