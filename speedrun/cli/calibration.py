"""The calibration of a run folder: made on the clock after training, checked before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import DataError, PackError
from speedrun.files import write_atomic
from speedrun.fitted import calibrate_trained
from speedrun.quant.calibration import Calibration
from speedrun.train.calibrate import check_calibration
from speedrun.train.loop import Trained

NAME = "calibration.safetensors"


def calibrate_run(
    folder: Path, run: RunConfig, trained: Trained, dataset: Dataset, clock: Clock
) -> None:
    """Calibrate what was just trained, if the recipe keeps seconds for it, and write it down.

    Raises
        BudgetError: the seconds do not hold one batch.
    """
    if not run.quant.calibration_s or (folder / NAME).exists():
        return
    shards = dataset.train_shards
    found = calibrate_trained(run, trained.weights, shards, clock, first_step=trained.steps)
    _write(folder / NAME, found)


def calibration_of(
    folder: Path, run: RunConfig, trained: Trained, dataset: Dataset
) -> Calibration | None:
    """The calibration that packing may use, or None where the recipe needs none.

    Text that the network wrote itself can be had at any time, since no data is read for it.

    Raises
        PackError: the recipe needs one, and the run made none while its clock ran.
        DataError: it is damaged, or did not read this dataset's training text.
    """
    if run.quant.method == "nearest":
        return None
    path = folder / NAME
    if path.exists():
        found = _read(path)
        check_calibration(found, dataset.train_shards, run)
        return found
    if run.quant.calibration == "generated":
        off_the_clock = Clock(float("inf"), Ledger(None))
        found = calibrate_trained(
            run, trained.weights, dataset.train_shards, off_the_clock, first_step=0
        )
        _write(path, found)
        return found
    if run.quant.method == "fit":
        return None
    raise PackError(
        f"quant.method = {run.quant.method!r} needs a calibration, {folder} has none; train with "
        'quant.calibration_s above 0, or set quant.calibration="generated", which reads no data'
    )


def _write(path: Path, found: Calibration) -> None:
    from safetensors.torch import save

    tensors = {f"gram:{name}": gram.contiguous().clone() for name, gram in found.grams.items()}
    tensors |= {f"squares:{name}": sums.contiguous() for name, sums in found.squares.items()}
    facts = {key: getattr(found, key) for key in _FACTS}
    write_atomic(path, save(tensors, metadata={"speedrun": json.dumps(facts)}))


_FACTS = ("source", "first_step", "num_batches", "num_tokens", "digest")


def _read(path: Path) -> Calibration:
    from safetensors import SafetensorError, safe_open

    grams: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["speedrun"])
            for key in file.keys():  # noqa: SIM118
                kind, _, name = key.partition(":")
                (grams if kind == "gram" else squares)[name] = file.get_tensor(key)
        return Calibration(grams=grams, squares=squares, **{key: facts[key] for key in _FACTS})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; remove it and calibrate again") from error
