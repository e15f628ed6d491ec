"""Read a track: what a contest allows, how it is scored and what a new record must show."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from speedrun import settings
from speedrun.errors import ConfigError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRule:
    """When a submission beats the standing record."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    seeds: int = 3
    """Runs with different seeds that must be handed in."""
    margin_nats_per_token: float = 0.0
    """Mean improvement that must be shown, in nats per token of the corpus's tokenizer."""
    p_value: float = 0.01
    """Largest p of a one-sided Welch test against the standing record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What the validation split of the corpus must measure; 0 where the corpus is built locally."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    validation_tokens: int = 0
    """Tokens that are scored."""
    validation_bytes: int = 0
    """Bytes of text behind them: the denominator of bpb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the organisers decided about one question, and where they said so."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    text: str
    """The ruling in words."""
    source: str = ""
    """Where it can be read."""
    is_on: bool = True
    """The position of the switch, where `SWITCHES` has one of this name."""
    is_disputed: bool = False
    """Part of the field reads the rules otherwise; a verdict says which way it went."""


SWITCHES = {
    "adaptation": "predictors may learn from validation tokens that were already scored",
    "calibration": "calibration and averaging count against the training budget",
    "lossy-tokenizer": "a tokenizer may lose text whose bytes it is credited with",
    "start-up": "starting and loading the predictor counts against the evaluation budget",
}
"""Rulings that change what the judge does. A track that is silent has them on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Limits and rules of one contest. Data, never code."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """What records are filed under."""
    version: int
    """Rules version; scores are comparable within one version only."""
    summary: str
    """One line for lists."""
    train_seconds: float
    """Budget of everything that reads training data and changes state before scoring."""
    eval_seconds: float
    """Budget of the scoring pass."""
    cap_bytes: int
    """Largest artifact: counted code plus packed weights, decimal bytes on disk."""
    corpus: str
    """Name of the corpus that is trained on and scored."""
    recipe: str
    """Recipe that `speedrun run` takes when none is named."""
    hardware: str
    """What the seconds are measured on."""
    num_gpus: int = 0
    """GPUs that the contest allows; 0 is a CPU contest."""
    rulings: dict[str, Ruling] = field(default_factory=dict)
    """By name, switches and plain words alike."""
    record: RecordRule = field(default_factory=RecordRule)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)

    def __post_init__(self) -> None:
        for key in ("train_seconds", "eval_seconds", "cap_bytes"):
            if getattr(self, key) <= 0:
                raise ConfigError(
                    f"track {self.name}: {key} = {getattr(self, key)}, must be above zero"
                )

        for name, ruling in self.rulings.items():
            if name not in SWITCHES and (not ruling.is_on or ruling.is_disputed):
                raise ConfigError(
                    f"track {self.name}: rulings.{name} is not a switch; switches are "
                    + ", ".join(SWITCHES)
                )

    def is_on(self, switch: str) -> bool:
        """Which way a switch of `SWITCHES` is set."""
        assert switch in SWITCHES, switch
        return self.rulings[switch].is_on if switch in self.rulings else True

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, as in the TOML file."""
        return dataclasses.asdict(self)


def load_track(name: str) -> Track:
    """A shipped track by name, or a track file of the user's own by path.

    Raises
        ConfigError: no such track, or a key or value in it is wrong.
    """
    path = settings.find_file(FOLDER, name, kind="track")
    return settings.validate(Track, settings.read_toml(path), source=path.name)


def list_tracks() -> list[Track]:
    """All shipped tracks, by name."""
    return [load_track(name) for name in settings.list_names(FOLDER)]
