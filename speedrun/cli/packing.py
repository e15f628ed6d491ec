"""From trained weights to a submission folder: round, compress, count, score, write."""

from __future__ import annotations

import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from speedrun.bpb import Score
from speedrun.cli.calibration import calibration_of
from speedrun.cli.folder import read_environment
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import OutputError, PackError
from speedrun.files import write_atomic
from speedrun.fitted import pack_by_method
from speedrun.pack.bundle import TWIN_NAME, bundle_of, readable_twin
from speedrun.pack.submission import MANIFEST_NAME, SubmissionFacts, write_submission
from speedrun.standalone import score_packed
from speedrun.tracks.load import Track
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained


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


def pack_run(
    run: RunConfig,
    track: Track,
    dataset: Dataset,
    folder: Path,
    trained: Trained,
    *,
    out: Path,
    cap_bytes: int,
    author: str = "",
    clock: Clock | None = None,
    log: RunLog | None = None,
) -> Packed:
    """Pack what the run in `folder` trained, score it, and write the submission to `out`.

    With a clock, packing and scoring are booked in its ledger before that is copied. An older
    submission at `out` is replaced only once the new one is complete.

    Raises
        PackError: more than `cap_bytes`; nothing is written.
        DataError: the run was trained on other data.
        OutputError: the submission cannot be written, or something else is at `out`.
    """
    clock = clock or Clock(run.train.budget_s, Ledger(None))
    log = log or RunLog()
    machine = read_environment(folder, dataset)
    _check_replaceable(out)
    with clock.phase("pack"):
        calibration = calibration_of(folder, run, trained, dataset)
        twin = readable_twin(run, cap_bytes=cap_bytes)
        bundle = bundle_of(twin)
        packed = pack_by_method(
            run, trained.weights, calibration, model_cap_bytes=cap_bytes - len(bundle)
        )
    total = len(packed) + len(bundle)
    log.line(f"Serialized model: {len(packed)} bytes")
    log.line(f"Code size: {len(bundle)} bytes")
    log.line(f"Total submission size: {total} bytes")
    if total > cap_bytes:
        raise PackError(
            f"model.srz {len(packed):,} + train_gpt.py {len(bundle):,} = {total:,} bytes, "
            f"{total - cap_bytes:,} over the limit of {cap_bytes:,}; the weights are kept, so "
            f"take fewer bits: speedrun pack {folder} --set quant.matrix_bits=N, or let the packer "
            "choose them: --set quant.method='fit'"
        )
    write_atomic(folder / TWIN_NAME, twin.encode())
    with clock.phase("evaluate"):
        result = score_packed(
            packed, dataset.val_tokens(), num_bytes=dataset.val_raw_bytes, log=log
        )
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    write_submission(
        fresh,
        weights_bytes=packed,
        bundle=bundle,
        facts=SubmissionFacts(
            name=run.name,
            seed=run.seed,
            blurb=run.summary,
            author=author or os.environ.get("SPEEDRUN_AUTHOR", "anonymous"),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            val_bpb=result.bpb,
            val_loss=result.nats_per_token,
            step_stop=trained.steps,
            wallclock_seconds=trained.seconds,
            eval_time_seconds=result.seconds,
            # Counted tables travel as integers; they are no parameters.
            model_params=sum(
                tensor.numel() for tensor in trained.weights.values() if tensor.is_floating_point()
            ),
            hardware=machine["hardware"],
            pytorch_version=machine["torch"],
            data_fingerprint=dataset.fingerprint,
        ),
        logs={
            "train.log": (log.folder or folder) / "train.log",
            "ledger.jsonl": folder / "ledger.jsonl",
            TWIN_NAME: folder / TWIN_NAME,
        },
        track=track,
    )
    _put_in_place(fresh, out)
    return Packed(folder=out, model_bytes=len(packed), code_bytes=len(bundle), score=result)


def _check_replaceable(out: Path) -> None:
    """Replace a submission or an empty folder, never a folder with a person's own files."""
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise OutputError(f"{out} has files but is no submission; choose another --out")


def _put_in_place(fresh: Path, out: Path) -> None:
    """Give a complete folder its name; whatever stops this, the new or the old one is left."""
    older = out.with_name(f".{out.name}.older")
    try:
        if out.exists():
            shutil.rmtree(older, ignore_errors=True)
            out.rename(older)
        fresh.rename(out)
    except OSError as error:
        if older.exists() and not out.exists():
            older.rename(out)
        shutil.rmtree(fresh, ignore_errors=True)
        raise OutputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    shutil.rmtree(older, ignore_errors=True)
