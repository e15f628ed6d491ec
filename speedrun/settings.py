"""TOML files into frozen dataclasses, with errors that name the key and the nearest valid one.

Tracks, recipes and corpora are read through here; what their keys mean stands in their dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from speedrun.errors import ConfigError

Settings = TypeVar("Settings")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file.

    Raises
        ConfigError: the file is missing, unreadable, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error


def find_file(folder: Path, name: str, *, kind: str) -> Path:
    """The shipped file `folder/name.toml`, or `name` itself when it is the path of a TOML file.

    Raises
        ConfigError: neither exists; the message lists the nearest shipped names.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{kind} file {name!r} does not exist")
        return path
    shipped = list_names(folder)
    if name in shipped:
        return folder / f"{name}.toml"
    near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(shipped)}"
    raise ConfigError(f"unknown {kind} {name!r}; {hint} (a path to your own .toml file works too)")


def list_names(folder: Path) -> list[str]:
    """Names of the TOML files under `folder`, without suffix, sorted."""
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml")
    )


def validate(kind: type[Settings], values: dict[str, Any], *, source: str) -> Settings:
    """Build the dataclass `kind` from plain values, checking every key and type.

    Raises
        ConfigError: an unknown key (with the nearest valid one), a missing key, a wrong type, or
            a value that the dataclass itself refuses. The first problem is reported.
    """
    import pydantic  # 60 ms to import: only commands that read settings pay for it

    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigError(
                f"{source}: unknown key {key!r}; {_suggest(key, known_keys(kind))}"
            ) from None
        if first["type"] in ("missing", "missing_argument"):
            raise ConfigError(f"{source}: key {key!r} is missing; it has no default") from None
        raise ConfigError(f"{source}: {key} = {first['input']!r}: {first['msg'].lower()}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def known_keys(kind: Any, prefix: str = "") -> list[str]:
    """Every dotted key that `kind` takes, sections included."""
    keys = []
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        keys.append(prefix + entry.name)
        for part in _alternatives(hints[entry.name]):
            if dataclasses.is_dataclass(part):
                keys += known_keys(part, f"{prefix}{entry.name}.")
    return keys


def parse_override(text: str) -> tuple[str, Any]:
    """Split `section.key=value`; the value is read as TOML, or taken as a plain string.

    Raises
        ConfigError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected section.key=value, e.g. optim.matrix_lr=0.02")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section; neither is modified."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = (
            merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return merged


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys to a nested dict.

    Raises
        ConfigError: one key is used both as a value and as a section.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key!r}: {section!r} is a value, not a section")
        place[last] = value
    return nested


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _suggest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # the right name in the wrong section, or none
        last = key.rpartition(".")[2]
        near = [name for name in known if name.rpartition(".")[2] == last][:1]
    return f"did you mean {near[0]!r}?" if near else "`speedrun recipes show` lists the valid ones"
