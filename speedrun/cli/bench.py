"""`speedrun bench`: how fast a recipe's step is on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speedrun.cli.screen import say, say_aside

if TYPE_CHECKING:
    from speedrun.measure.bench import Bench


def bench(
    recipe: str = typer.Option(
        "", metavar="NAME|FILE", help="Recipe name or .toml file. Default: pocket/default."
    ),
    overrides: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="section.key=value, repeatable."
    ),
    rounds: int = typer.Option(
        5, metavar="N", min=1, show_default=False, help="Rounds of three steps. Default: 5."
    ),
    compare: bool = typer.Option(
        False, "--compare", help="Take turns with a plain torch step of the same network."
    ),
    profile: Path | None = typer.Option(
        None, metavar="FILE", help="Write a chrome trace of three steps."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Measure a recipe's step: tokens a second, time by phase, share of the machine's peak, memory.

    No data is needed: the text is synthetic. Nothing is kept.
    """
    from speedrun.measure.bench import bench as measure
    from speedrun.ranks import Ranks
    from speedrun.recipes.load import load_recipe

    run = load_recipe(recipe or "pocket/default", overrides)
    ranks = Ranks.from_environment()
    quiet = not ranks.is_main
    found = measure(
        run,
        ranks,
        rounds=rounds,
        compare=compare,
        profile=None if quiet else profile,
        say=(lambda line: None) if quiet else say_aside,
    )
    ranks.close()
    if quiet:
        return
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    for line in _lines(found):
        say(line)


def _lines(found: Bench) -> list[str]:
    """The report, a fact in each line."""
    rows = [
        ("machine", f"{found.hardware}, torch {found.torch}"),
        (
            "recipe",
            f"{found.recipe}: {found.parameters:,} parameters, {found.tokens_per_step:,} tokens "
            "a step",
        ),
        (
            "step",
            f"{found.step_ms:.1f} ms ± {found.step_ms_spread:.1f}, "
            f"{found.tokens_per_s:,.0f} tokens/s",
        ),
        (
            "phases",
            ", ".join(f"{name} {ms:.1f} ms" for name, ms in found.phases_ms.items())
            + ("; backward includes forward" if "one graph" in found.step else ""),
        ),
        (
            "utilisation",
            f"{found.utilisation:.1%} of {found.peak_flops / 1e9:,.0f} GFLOP/s, the largest "
            f"product measured here; {found.flops_per_token / 1e6:.2f} MFLOP a token",
        ),
        ("memory", f"{found.peak_memory_bytes / 1e9:.2f} GB at most"),
    ]
    if (against := found.compared) is not None:
        rows.append(
            (
                "compared",
                f"{against.what}: {against.step_ms:.1f} ms, {against.tokens_per_s:,.0f} tokens/s; "
                f"ours is {against.ratio:.2f} x ({against.lowest_ratio:.2f} to "
                f"{against.highest_ratio:.2f})",
            )
        )
    if found.projected_ms_on_8 is not None:
        published = found.published_ms_on_8
        beside = f"; published on 8xH100: {published:.1f} ms" if published else ""
        rows.append(("on 8 of these", f"{found.projected_ms_on_8:.1f} ms without messages{beside}"))
    return [f"{name:<14} {text}" for name, text in rows]
