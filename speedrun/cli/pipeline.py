"""The main job, told once: train inside the budget, pack, score, and have the submission judged."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speedrun.cli.calibration import calibrate_run
from speedrun.cli.folder import note_environment, read_trained
from speedrun.cli.packing import Packed, pack_run
from speedrun.cli.screen import Screen
from speedrun.cli.signals import RunInterruptedError
from speedrun.cli.trackers import open_trackers
from speedrun.cli.training import train_run
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.dataset import Dataset, check_vocab
from speedrun.pages.report import REPORT, write_report
from speedrun.pages.samples import write_samples
from speedrun.ranks import Ranks
from speedrun.records.runs import RunRow, append_run
from speedrun.tracks.load import Track
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained
from speedrun.verify.judge import verify_submission
from speedrun.verify.verdict import Verdict, write_verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that went all the way."""

    folder: Path
    run: RunConfig
    trained: Trained
    packed: Packed
    verdict: Verdict


def run_once(
    run: RunConfig,
    track: Track,
    dataset: Dataset,
    folder: Path,
    screen: Screen,
    *,
    author: str,
    overlap: Mapping[str, str],
    samples: int = 0,
    log_to: Sequence[str] = (),
) -> Finished:
    """Train, pack, score and judge one run in `folder`, continuing where it was interrupted.

    `overlap` goes into the ledger: what is known of validation documents in the training shards.
    `samples` is how many continuations of the packed model the report shows, `log_to` names
    trackers.

    Raises
        RunInterruptedError: a signal came; the checkpoint is on disk.
        SpeedrunError: whatever a part of the story refuses.
    """
    check_vocab(dataset, run.model.vocab_size)
    machine = note_environment(folder, dataset)
    # What calibration is given, training does not have.
    trained_s = run.train.budget_s - run.quant.calibration_s
    clock = Clock(trained_s, Ledger(folder / "ledger.jsonl"))
    with clock.phase("data") as booked:
        booked.update(overlap)
    with open_trackers(log_to, run, folder, screen.say) as tell:
        log = RunLog(folder, screen.say, screen.on_step, tell)
        trained = read_trained(folder) or _train(run, dataset, folder, clock, log)
        calibrate_run(folder, run, trained, dataset, clock)
        screen.say("packing the averaged weights and scoring what is left of them")
        packed = pack_run(
            run,
            track,
            dataset,
            folder,
            trained,
            out=folder / "submission",
            cap_bytes=track.cap_bytes,
            author=author,
            clock=clock,
            log=log,
        )
        log.metrics(
            step=trained.steps, packed_bpb=packed.score.bpb, packed_bytes=packed.total_bytes
        )
    screen.say("judging the submission in a process of its own")
    # One's own code may run without walls; the verdict then says so.
    verdict = verify_submission(
        packed.folder, track, dataset, allow_unsandboxed=True, progress=screen.on_scored
    )
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
    if samples:
        write_samples(folder, dataset, count=samples)
    write_report([folder], folder / REPORT)
    return Finished(folder=folder, run=run, trained=trained, packed=packed, verdict=verdict)


def _train(run: RunConfig, dataset: Dataset, folder: Path, clock: Clock, log: RunLog) -> Trained:
    trained, number = train_run(run, dataset, folder, clock, log, Ranks.from_environment())
    if trained.interrupted:
        raise RunInterruptedError(
            f"interrupted after {trained.steps:,} steps; the checkpoint is saved, go on with: "
            f"speedrun run --resume {folder}",
            number,
        )
    return trained
