"""The run folder: made, read back to go on with a run or to pack it again.

runs/<time>-<recipe>-s<seed>/   recipe.toml  track.toml  environment.json  train.log
    metrics.jsonl  ledger.jsonl  checkpoint/  weights.safetensors  submission/  verdict.json
    samples.jsonl  report.html
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from speedrun.clock import Ledger
from speedrun.config import RunConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import ConfigError, DataError, OutputError
from speedrun.files import write_atomic
from speedrun.hardware import describe_machine
from speedrun.recipes.load import load_recipe, write_recipe
from speedrun.tracks.load import Track, load_track
from speedrun.train.loop import Trained


@contextmanager
def new_folder(run: RunConfig, track: Track, parent: Path) -> Iterator[Path]:
    """Make a run folder; if the block fails before the first step, it goes again.

    Raises
        OutputError: the folder cannot be made.
    """
    stamp = datetime.datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S")
    folder = parent / f"{stamp}-{run.name.replace('/', '-')}-s{run.seed}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another --out"
        ) from error
    try:
        write_recipe(folder / "recipe.toml", run)
        write_atomic(folder / "track.toml", tomli_w.dumps(track.to_dict()).encode())
        yield folder
    except BaseException:
        phases = Ledger(folder / "ledger.jsonl").phases
        # An interrupted run keeps its checkpoint, even one of no steps.
        if (
            not any(phase.details.get("steps") for phase in phases if phase.on_budget)
            and not (folder / "checkpoint").exists()
        ):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def read_folder(folder: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, Track]:
    """The resolved recipe (with overrides laid over it) and the track of a run folder.

    Raises
        ConfigError: it is no run folder, or one of the two was edited into nonsense.
    """
    recipe, track = folder / "recipe.toml", folder / "track.toml"
    if not recipe.is_file() or not track.is_file():
        raise ConfigError(f"{folder} is no run folder: it needs recipe.toml and track.toml")
    return load_recipe(str(recipe), overrides), load_track(str(track))


def note_environment(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Write and return `environment.json`: this machine, and the data that is trained on.

    Raises
        DataError: the run began with other data.
    """
    path = folder / "environment.json"
    if path.exists():
        read_environment(folder, dataset)
    machine = describe_machine() | {"data_fingerprint": dataset.fingerprint}
    write_atomic(path, (json.dumps(machine, indent=2) + "\n").encode())
    return machine


def read_environment(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """`environment.json` of a run that was trained on this data.

    Raises
        DataError: it is missing or damaged, or the run was trained on other data.
    """
    path = folder / "environment.json"
    try:
        machine = dict(json.loads(path.read_bytes()))
        trained_on = str(machine["data_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}; was the run ever started?") from error
    if trained_on != dataset.fingerprint:
        raise DataError(
            f"{folder} was trained on data {trained_on[:12]}, {dataset.folder} is "
            f"{dataset.fingerprint[:12]}; give the same dataset with --data"
        )
    return machine


def write_trained(folder: Path, trained: Trained) -> None:
    """Write `weights.safetensors`: from here on the run needs no more training."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in trained.weights.items()}
    metadata = {"steps": str(trained.steps)}
    write_atomic(folder / "weights.safetensors", save(tensors, metadata=metadata))


def read_trained(folder: Path) -> Trained | None:
    """What training left in a run folder; None if it did not get to its end.

    Raises
        DataError: the weights are damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "weights.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            steps = int(file.metadata()["steps"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; train again") from error
    phases = Ledger(folder / "ledger.jsonl").phases
    # Calibration comes after training, and may be booked already.
    seconds = sum(p.seconds for p in phases if p.on_budget and p.name != "calibrate")
    return Trained(weights=weights, steps=steps, seconds=seconds, interrupted=False)
