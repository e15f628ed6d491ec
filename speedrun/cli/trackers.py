"""Training curves for TensorBoard, Weights & Biases and trackio, beside our own `metrics.jsonl`.

A tracker is a luxury: what it needs is checked before the run starts, and if it fails later the run
goes on without it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from speedrun.config import RunConfig
from speedrun.errors import ConfigError
from speedrun.settings import flatten

PROJECT = "speedrun"
"""Under which runs are found there."""


class Tracker(Protocol):
    """Whatever shows numbers by step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take in what was measured after `step`."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir runs`."""

    def __init__(self, run: RunConfig, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        settings = "\n".join(f"    {key} = {value!r}" for key, value in _settings(run).items())
        self._writer.add_text("recipe", settings)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take in what was measured after `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()


class Service:
    """A run of a service, which wandb and trackio give alike."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take in what was measured after `step`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is still held back."""
        self._run.finish()


def open_wandb(run: RunConfig, folder: Path) -> Tracker:
    """A run of the project `speedrun`; with WANDB_MODE=offline its files stay in the run folder."""
    import wandb

    name, settings = folder.name, _settings(run)
    return Service(
        wandb.init(
            project=PROJECT, id=name, name=name, dir=str(folder), config=settings, resume="allow"
        )
    )


def open_trackio(run: RunConfig, folder: Path) -> Tracker:
    """A run of the project `speedrun` in trackio's own folder: `trackio show`."""
    import trackio

    settings = _settings(run)
    return Service(trackio.init(project=PROJECT, name=folder.name, config=settings, resume="allow"))


TRACKERS: dict[str, Callable[[RunConfig, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": open_wandb,
    "trackio": open_trackio,
}
"""Name, which is also that of the package it needs and of our extra -> what opens it."""


def check_trackers(names: Sequence[str]) -> None:
    """See to it that they exist and can be imported.

    Raises
        ConfigError: one is unknown, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--log-to {name!r} is unknown; expected one of {list(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--log-to {name} needs the package {name}; pip install 'speedrun[{name}]'"
            )


@contextmanager
def open_trackers(
    names: Sequence[str], run: RunConfig, folder: Path, say: Callable[[str], None]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What rows of `metrics.jsonl` are to be told, too, so that every tracker hears of them."""
    opened: dict[str, Tracker] = {}

    def attempt(name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is no reason to lose a run)
            opened.pop(name, None)
            say(f"{name}: {type(error).__name__}: {error}; the run goes on without it")

    def open_one(name: str) -> None:
        opened[name] = TRACKERS[name](run, folder)

    def tell(row: Mapping[str, Any]) -> None:
        values = dict(_numbers(row))
        step = int(values.pop("step", 0))
        for name, tracker in list(opened.items()):
            attempt(name, partial(tracker.log, values, step))

    for name in dict.fromkeys(names):
        attempt(name, partial(open_one, name))
    try:
        yield tell
    finally:
        for name, tracker in list(opened.items()):
            attempt(name, tracker.close)


def _settings(run: RunConfig) -> dict[str, Any]:
    return flatten(dataclasses.asdict(run))


def _numbers(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name; those of a group as `norm/group`, which trackers show together."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float) and name != "time":
            yield f"{before}{name}", value
