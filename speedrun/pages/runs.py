"""A run folder as it lies there, finished or not: all that a report or a live view shows of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from speedrun.clock import Phase, read_ledger
from speedrun.config import RunConfig
from speedrun.errors import ConfigError, SpeedrunError
from speedrun.pages.course import Course, course_of_run, read_limited
from speedrun.pages.evidence import Judgement, read_judgements, recipe_beside
from speedrun.tracks.load import Track, load_track

SAMPLES = "samples.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run folder holds at one moment; parts that are not there yet are empty or None."""

    folder: Path
    recipe: RunConfig
    track: Track | None
    """None if its file is of another version."""
    course: Course
    phases: tuple[Phase, ...]
    judgement: Judgement | None
    claims: dict[str, Any]
    """`submission.json`: what the packed weights scored and weigh."""
    environment: dict[str, Any]
    samples: tuple[tuple[str, str], ...]
    """Beginnings of validation documents, and how the packed model goes on."""
    log: tuple[str, ...]
    """Lines of `train.log`."""
    damaged: tuple[str, ...]
    """What could not be read."""

    @property
    def name(self) -> str:
        """Short enough for a label."""
        return f"{self.recipe.name} s{self.recipe.seed}"

    @property
    def budget_s(self) -> float:
        """Training seconds that it may take, calibration included."""
        return self.recipe.train.budget_s or (self.track.train_seconds if self.track else 0.0)

    @property
    def cap_bytes(self) -> int | None:
        """Largest artifact that its track allows."""
        return self.track.cap_bytes if self.track else None

    @property
    def spent_s(self) -> float:
        """Seconds on the budget: the ledger's, or what the last measurement says."""
        booked = sum(phase.seconds for phase in self.phases if phase.on_budget)
        return max([booked, *self.course.seconds.values()])

    @property
    def num_steps(self) -> int:
        """Steps done, as far as is known."""
        booked = [phase.details.get("steps") for phase in self.phases if phase.name == "train"]
        known = [step for step in booked if isinstance(step, int)]
        return max([*known, *map(int, self.course.seconds)], default=0)

    @property
    def val_bpb(self) -> float | None:
        """The judge's score, else the claim."""
        return _number(self.claims.get("val_bpb"))

    @property
    def num_bytes(self) -> int | None:
        """Counted bytes of its submission."""
        found = _number(self.claims.get("bytes_total"))
        return None if found is None else int(found)

    @property
    def state(self) -> str:
        """`finished`, `packing`, `interrupted`, `training` or `starting`."""
        if self.judgement is not None:
            return "finished"
        if self.claims or (self.folder / "weights.safetensors").exists():
            return "packing"
        if any("stopping_early: signal" in line for line in self.log[-3:]):
            return "interrupted"
        return "training" if self.course.seconds else "starting"


def read_run(folder: Path) -> Run:
    """Read a run folder; of a run in progress, what is there.

    Raises
        ConfigError: it is no run folder.
    """
    if not (folder / "recipe.toml").is_file() or not (folder / "track.toml").is_file():
        raise ConfigError(f"{folder} is no run folder: it needs recipe.toml and track.toml")
    recipe = recipe_beside(folder)
    assert recipe is not None
    damaged: list[str] = []

    def tried(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (SpeedrunError, OSError, ValueError, RecursionError) as error:
            damaged.append(str(error).replace(f"{folder}/", ""))
            return otherwise

    tokens = recipe.data.tokens_per_step
    none: tuple[Judgement, ...] = ()
    judgements = tried(lambda: read_judgements(folder / "verdict.json"), none)
    return Run(
        folder=folder,
        recipe=recipe,
        track=tried(lambda: load_track(str(folder / "track.toml")), None),
        course=tried(lambda: course_of_run(folder, tokens), Course(name=folder.name)),
        phases=tuple(tried(lambda: _ledger(folder / "ledger.jsonl"), [])),
        judgement=judgements[0] if judgements else None,
        claims=tried(lambda: _object(folder / "submission" / "submission.json"), {}),
        environment=tried(lambda: _object(folder / "environment.json"), {}),
        samples=tried(lambda: _samples(folder / SAMPLES), ()),
        log=tried(lambda: _lines(folder / "train.log"), ()),
        damaged=tuple(damaged),
    )


def _ledger(path: Path) -> list[Phase]:
    return read_ledger(path) if path.is_file() else []


def _object(path: Path) -> dict[str, Any]:
    values = json.loads(read_limited(path)) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return tuple(read_limited(path).decode("utf-8", "replace").splitlines())


def _samples(path: Path) -> tuple[tuple[str, str], ...]:
    rows = [json.loads(line) for line in _lines(path)]
    return tuple((str(row["prompt"]), str(row["continuation"])) for row in rows)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
