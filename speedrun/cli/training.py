"""Training in a run folder, by one process alone or by each of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from speedrun.bpb import score
from speedrun.cli.folder import write_trained
from speedrun.cli.signals import Noted
from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.data.dataset import Dataset, check_vocab
from speedrun.pack.forecast import forecast_size
from speedrun.predict import ModelPredictor
from speedrun.ranks import Ranks
from speedrun.train.checkpoint import Checkpoints
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained, train

if TYPE_CHECKING:
    from speedrun.model.gpt import GPT

LOOK_TOKENS = 65_537
"""Validation tokens that a look between steps scores: enough for two digits, a second on a CPU."""


def train_run(
    run: RunConfig, dataset: Dataset, folder: Path, clock: Clock, log: RunLog, ranks: Ranks
) -> tuple[Trained, int]:
    """Train, going on from the folder's checkpoint, and leave the weights there once it is done.

    Returns also the signal that came, or 0. Rank 0's is the one that ends the run, and it writes.

    Raises
        SpeedrunError: see `train`.
    """
    check_vocab(dataset, run.model.vocab_size)
    with Noted() as signals:
        trained = train(
            run,
            open_batches(dataset.train_shards, run),
            clock,
            ranks,
            log,
            checkpoints=Checkpoints(folder, run),
            validate=_look(run, dataset, clock, log),
            should_stop=lambda: signals.number != 0,
        )
        if ranks.is_main and not trained.interrupted:
            write_trained(folder, trained)
    return trained, signals.number


def _look(
    run: RunConfig, dataset: Dataset, clock: Clock, log: RunLog
) -> Callable[[GPT, int], None]:
    """What `train.validate_every_s` asks for: the start of the validation text, in chunks."""
    chunks = dataclasses.asdict(run.evaluation) | {"stride": run.evaluation.context}

    def look(model: GPT, step: int) -> None:
        tokens = dataset.val_tokens()
        part = tokens[:LOOK_TOKENS]
        # A part of the text has a part of the bytes: good enough to watch, never the result.
        num_bytes = max(round(dataset.val_raw_bytes * len(part) / len(tokens)), 1)
        predictor = ModelPredictor(model, run.model.vocab_size)
        seen = score(predictor, part, num_bytes=num_bytes, **chunks)
        log.validation(
            step=step,
            max_steps=run.train.max_steps,
            loss_nats=seen.nats_per_token,
            bpb=seen.bpb,
            elapsed_s=clock.elapsed_s,
        )
        foreseen = forecast_size(model.state_dict(), run.quant)
        log.line(
            f"step:{step}/{run.train.max_steps} forecast_model_bytes:{foreseen.model_bytes} "
            f"bits_per_weight:{foreseen.bits_per_weight:.3f}"
        )

    return look
