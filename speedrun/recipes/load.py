"""Resolve a recipe: walk `extends`, lay `--set` over it, validate, and compare two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from speedrun import settings
from speedrun.config import RunConfig
from speedrun.errors import ConfigError
from speedrun.files import write_atomic

FOLDER = Path(__file__).parent


def load_recipe(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A shipped recipe by name or a recipe file by path, with `section.key=value` overrides.

    Raises
        ConfigError: no such recipe, a circle of `extends`, or a wrong key or value.
    """
    values = _resolve(name, seen=())
    for text in overrides:
        key, value = settings.parse_override(text)
        values = settings.merge(values, settings.nest({key: value}))
    return settings.validate(RunConfig, values, source=f"recipe {name}")


def list_recipes() -> list[RunConfig]:
    """All shipped recipes, by name."""
    return [load_recipe(name) for name in settings.list_names(FOLDER)]


def parent_of(name: str) -> str | None:
    """The recipe that `name` extends, if any."""
    extends = settings.read_toml(settings.find_file(FOLDER, name, kind="recipe")).get("extends")
    return None if extends is None else str(extends)


def diff_recipes(left: RunConfig, right: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values; names and summaries left out."""
    ours, theirs = settings.flatten(left.to_dict()), settings.flatten(right.to_dict())
    return {
        key: (ours[key], theirs[key])
        for key in ours
        if ours[key] != theirs[key] and key not in ("name", "summary")
    }


def write_recipe(path: Path, run: RunConfig) -> None:
    """Write a resolved recipe: every key, so that it means the same when defaults change."""
    write_atomic(path, tomli_w.dumps(run.to_dict()).encode())


def _resolve(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ConfigError(f"recipes extend one another in a circle: {' -> '.join((*seen, name))}")
    path = settings.find_file(FOLDER, name, kind="recipe")
    values = settings.read_toml(path)
    values.setdefault("name", name.removesuffix(".toml"))
    parent = values.pop("extends", None)
    if parent is None:
        return values
    beside = path.parent / str(parent)  # a user's file may extend its neighbour
    parent = str(beside) if str(parent).endswith(".toml") and beside.is_file() else str(parent)
    return settings.merge(_resolve(parent, (*seen, name)), values)
