"""What lies beside a record: verdicts, logs, ledgers and the recipe, each read with suspicion.

Nothing here stops a page. What is missing is left out; what is damaged is said on the page.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedrun.clock import Phase, read_ledger
from speedrun.config import RunConfig
from speedrun.errors import ConfigError, RecordError, SpeedrunError
from speedrun.pages.course import Course, course_of_log, read_limited
from speedrun.recipes.load import diff_recipes, load_recipe

_LOGS = 24
_SEED = re.compile(r"seed[_-]?(\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of a verdict, as text."""

    id: str
    condition: str
    status: str
    measured: str
    limit: str
    evidence: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict of any version, as far as it can be shown."""

    name: str
    status: str
    level: str
    isolation: str
    rules_version: str
    rules: tuple[Rule, ...]
    score: dict[str, str]
    """What the judge measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that differs from the parent's."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All of it."""

    judgements: tuple[Judgement, ...]
    courses: tuple[Course, ...]
    ledgers: tuple[tuple[str, tuple[Phase, ...]], ...]
    recipe: RunConfig | None
    damaged: tuple[str, ...]
    """What could not be read, in the words of the error."""


def read_evidence(folder: Path) -> Evidence:
    """Read what a record's folder, or a run's, holds. Never raises for what is in it."""
    damaged: list[str] = []

    def tried(read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except (SpeedrunError, OSError, ValueError, RecursionError) as error:
            # Errors name whole paths; a page has no use for where the folder lay.
            damaged.append(str(error).replace(f"{folder}/", ""))
            return None

    recipe: RunConfig | None = tried(recipe_beside, folder)
    tokens = recipe.data.tokens_per_step if recipe else 0.0

    def course(path: Path) -> Course:
        return course_of_log(path, seed_name(path), tokens_per_step=tokens)

    courses = [tried(course, path) for path in _files(folder, ".log", ".txt")]
    ledgers = [
        (seed_name(path), tried(read_ledger, path)) for path in _files(folder, "ledger.jsonl")
    ]
    return Evidence(
        judgements=tried(read_judgements, folder / "verdict.json") or (),
        courses=_different([found for found in courses if found is not None and found.train_nats]),
        ledgers=tuple((name, tuple(phases)) for name, phases in ledgers if phases),
        recipe=recipe,
        damaged=tuple(damaged),
    )


def seed_name(path: Path) -> str:
    """`seed 42` of a file that says so, else its name."""
    found = _SEED.search(path.name)
    return f"seed {int(found[1])}" if found else path.name.partition(".")[0]


def read_judgements(path: Path) -> tuple[Judgement, ...]:
    """The verdict in a file, or the verdicts by seed; none if there is no file.

    Older verdicts lack some keys. They are shown as they are, since a record keeps the verdict
    that it was filed with.

    Raises
        RecordError: it is no JSON of verdicts.
    """
    if not path.is_file():
        return ()
    try:
        values = json.loads(read_limited(path))
    except ValueError as error:
        raise RecordError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path}: no verdict, nor verdicts by seed")
    named = {"": values} if "results" in values else values
    return tuple(
        _judgement(f"seed {name}" if name.isdigit() else name, value)
        for name, value in list(named.items())[:_LOGS]
        if isinstance(value, dict) and isinstance(value.get("results"), list)
    )


def recipe_beside(folder: Path) -> RunConfig | None:
    """`recipe.toml` of a folder, None if it has none.

    Raises
        ConfigError: it is no recipe of this version, or builds on another file.
    """
    path = folder / "recipe.toml"
    if not path.is_file():
        return None
    if b"extends" in read_limited(path):
        raise ConfigError(f"{path}: extends another recipe; a record has every key")
    return load_recipe(str(path))


def changes(before: RunConfig, after: RunConfig) -> tuple[Change, ...]:
    """Settings that differ; seeds do not count."""
    return tuple(
        Change(key=key, before=_said(old), after=_said(new))
        for key, (old, new) in diff_recipes(before, after).items()
        if key != "seed"
    )


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _files(folder: Path, *endings: str) -> list[Path]:
    """Plain files of a folder, in a natural order; links could lead anywhere."""
    if not folder.is_dir():
        return []
    found = [
        path
        for path in folder.iterdir()
        if path.name.endswith(endings) and path.is_file() and not path.is_symlink()
    ]

    def order(path: Path) -> tuple[int, str]:
        seed = _SEED.search(path.name)
        return int(seed[1]) if seed else -1, path.name

    return sorted(found, key=order)[:_LOGS]


def _different(courses: list[Course]) -> tuple[Course, ...]:
    """Courses without copies: many folders have one seed's log once more as `train.log`."""
    kept: list[Course] = []
    # Names of seeds say more than others, so a copy gives way to them.
    for course in sorted(courses, key=lambda course: not course.name.startswith("seed ")):
        if all(course.train_nats != other.train_nats for other in kept):
            kept.append(course)
    return tuple(course for course in courses if course in kept)


def _judgement(name: str, values: dict[str, Any]) -> Judgement:
    measured = values.get("measurement")
    score = {
        key.replace("_", " "): _said(round(value, 6) if isinstance(value, float) else value)
        for key, value in (measured if isinstance(measured, dict) else {}).items()
        if value is not None
    }
    return Judgement(
        name=name,
        status=_text(values, "status"),
        level=_text(values, "level"),
        isolation=_text(values, "isolation"),
        rules_version=_text(values, "rules_version"),
        rules=tuple(
            Rule(**{key: _text(rule, key) for key in Rule.__slots__})
            for rule in values["results"][:200]
            if isinstance(rule, dict)
        ),
        score=score,
    )


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key, "")
    return str(value) if isinstance(value, str | int | float) else ""
