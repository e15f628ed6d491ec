"""Recipes resolve through `extends`, take overrides, and refuse what they do not know."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from speedrun.config import RunConfig
from speedrun.errors import ConfigError
from speedrun.recipes.load import (
    diff_recipes,
    list_recipes,
    load_recipe,
    parent_of,
    write_recipe,
)


def test_every_shipped_recipe_is_valid() -> None:
    names = [run.name for run in list_recipes()]
    assert {
        "pocket/default",
        "golf/baseline",
        "golf/pr649",
        "golf/xsa4-ema",
        "golf/partial-rope",
    } <= set(names)


def test_a_child_holds_only_what_differs() -> None:
    child, parent = load_recipe("golf/partial-rope"), load_recipe("golf/xsa4-ema")
    assert parent_of("golf/partial-rope") == "golf/xsa4-ema"
    assert diff_recipes(parent, child) == {
        "model.rope_dims": (0, 16),
        "model.rope_base": (20_452.0, 22_082.0),
        "model.ln_scale": (False, True),
    }


def test_pr649_is_as_published() -> None:
    run = load_recipe("golf/pr649")
    model = run.model
    assert (model.num_layers, model.width, model.num_heads, model.num_kv_heads) == (11, 512, 8, 4)
    assert model.tied_embeddings and model.rope_dims == 16 and model.xsa_layers == 4
    assert model.ln_scale and model.bigram_buckets == 2048
    assert (run.data.tokens_per_step, run.data.sequence_length) == (262_144, 2048)
    assert run.train.warmup_steps == 20 and run.average.ema_decay == 0.997


def test_overrides_win_and_are_typed() -> None:
    run = load_recipe("pocket/default", ["optim.matrix_lr=0.5", "model.smear=false", "seed=7"])
    assert (run.optim.matrix_lr, run.model.smear, run.seed) == (0.5, False, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=3", "model.width"),
        ("matrix_lr=0.1", "optim.matrix_lr"),
        ("model.width=abc", "valid integer"),
        ("model.num_heads=7", "multiple of model.num_heads"),
        ("model=3", "model"),
        ("schedule.warmdown_frac=2", r"\[0, 1\]"),
        ("data.tokens_per_step=1000", "data.sequence_length"),
        ("nonsense", "section.key=value"),
        ("quant.clip_candidates=[]", "quantiles"),
    ],
)
def test_a_bad_override_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("pocket/default", [override])


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="pocket/default"):
        load_recipe("pocket/defualt")


def test_a_users_file_may_extend_a_shipped_recipe_and_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text('extends = "golf/baseline"\n[model]\nnum_layers = 3\n')
    (tmp_path / "second.toml").write_text('extends = "first.toml"\n[model]\nxsa_layers = 2\n')
    run = load_recipe(str(tmp_path / "second.toml"))
    assert (run.model.num_layers, run.model.xsa_layers, run.model.width) == (3, 2, 512)


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(ConfigError, match="circle"):
        load_recipe(str(tmp_path / "a.toml"))


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("= 3")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["pocket/default", "golf/pr649"])
def test_a_written_recipe_reads_back_the_same(name: str, tmp_path: Path) -> None:
    run = load_recipe(name)
    write_recipe(tmp_path / "recipe.toml", run)
    assert load_recipe(str(tmp_path / "recipe.toml")) == run
    assert RunConfig.from_dict(tomllib.loads((tmp_path / "recipe.toml").read_text())) == run
