"""Protects the way from TOML to frozen settings: errors name the key and the nearest valid one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from speedrun import settings
from speedrun.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    radius: float = 0.3

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ConfigError(f"radius = {self.radius}, must be above zero")


@dataclass(frozen=True, kw_only=True)
class Bicycle:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    gears: int = 1
    front: Wheel = field(default_factory=Wheel)
    basket: Wheel | None = None


def _refused(values: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        settings.validate(Bicycle, values, source="mine.toml")
    return str(error.value)


def test_values_become_frozen_settings():
    found = settings.validate(Bicycle, {"name": "a", "front": {"radius": 1}}, source="mine.toml")
    assert found == Bicycle(name="a", front=Wheel(radius=1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.gears = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "a", "gear": 3}, "unknown key 'gear'; did you mean 'gears'?"),
        ({"name": "a", "front": {"radus": 3}}, "'front.radus'; did you mean 'front.radius'?"),
        ({"name": "a", "radius": 3}, "'radius'; did you mean 'front.radius'?"),
        ({"name": "a", "zzz": 3}, "`speedrun recipes show` lists the valid ones"),
        ({"name": "a", "gears": "many"}, "gears = 'many': input should be a valid integer"),
        ({"name": "a", "gears": 1.5}, "gears = 1.5"),
        ({}, "key 'name' is missing"),
        ({"name": "a", "front": {"radius": -1}}, "mine.toml: radius = -1.0, must be above zero"),
    ],
)
def test_a_wrong_key_or_value_is_named(values, said):
    message = _refused(values)
    assert message.startswith("mine.toml: ") and said in message and "\n" not in message


def test_known_keys_look_into_sections_and_unions():
    assert settings.known_keys(Bicycle) == [
        *("name", "gears", "front", "front.radius", "basket", "basket.radius"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=3", ("a.b", 3)),
        ("a.b = 0.5", ("a.b", 0.5)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=true", ("a", True)),
        ('a="3"', ("a", "3")),
        ("a=plain word", ("a", "plain word")),
        ("a=x=y", ("a", "x=y")),
    ],
)
def test_overrides_are_toml_or_a_plain_string(text, expected):
    assert settings.parse_override(text) == expected


@pytest.mark.parametrize("text", ["a.b", "=3", " =3"])
def test_an_override_without_key_and_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        settings.parse_override(text)


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml: cannot be read as TOML"):
        settings.read_toml(path)
    with pytest.raises(ConfigError, match="no such file"):
        settings.read_toml(tmp_path / "absent.toml")


def test_files_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shipped = tmp_path / "shipped"
    (shipped / "golf").mkdir(parents=True)
    for name in ("golf/baseline", "pocket"):
        (shipped / f"{name}.toml").write_text("")
    assert settings.list_names(shipped) == ["golf/baseline", "pocket"]
    assert settings.find_file(shipped, "golf/baseline", kind="recipe").parent.name == "golf"
    monkeypatch.chdir(shipped)
    assert settings.find_file(shipped, "pocket.toml", kind="recipe") == Path("pocket.toml")
    with pytest.raises(ConfigError, match=r"unknown recipe 'pockets'; did you mean 'pocket'\?"):
        settings.find_file(shipped, "pockets", kind="recipe")
    with pytest.raises(ConfigError, match="there are: golf/baseline, pocket"):
        settings.find_file(shipped, "zzz", kind="recipe")
    with pytest.raises(ConfigError, match=r"recipe file 'zzz\.toml' does not exist"):
        settings.find_file(shipped, "zzz.toml", kind="recipe")


def test_merge_goes_section_by_section_and_changes_neither():
    base, changes = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}
    assert settings.merge(base, changes) == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3} and changes == {"a": {"c": 4}, "d": {"e": 5}}


def test_nest_undoes_flatten():
    values = {"a": {"b": 1, "c": {"d": 2}}, "e": [3]}
    assert settings.flatten(values) == {"a.b": 1, "a.c.d": 2, "e": [3]}
    assert settings.nest(settings.flatten(values)) == values
    with pytest.raises(ConfigError, match="'a' is a value, not a section"):
        settings.nest({"a": 1, "a.b": 2})
