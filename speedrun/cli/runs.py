"""`speedrun runs`: the runs made here, as a table to filter, to compare and to export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from speedrun.cli.screen import say

if TYPE_CHECKING:
    from speedrun.records.runs import RunRow


class Form(StrEnum):
    """How the rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"


def runs(
    words: list[str] = typer.Argument(
        None, metavar="[WORD]...", help="Words in a run's folder, recipe or note."
    ),
    track: str = typer.Option("", metavar="NAME", help="Only runs on this track."),
    recipe: str = typer.Option("", metavar="NAME", help="Only runs of this recipe."),
    verdict: str = typer.Option("", metavar="WORD", help="Only PASS, FAIL, UNDECIDED, ..."),
    since: str = typer.Option("", metavar="DATE", help="Only runs that ended on it or later."),
    best: int = typer.Option(0, metavar="N", min=0, help="The N best scores, best first."),
    compare: tuple[str, str] | None = typer.Option(
        None, metavar="A B", help="Compare recipes, or runs whose folders begin so."
    ),
    p_value: float = typer.Option(
        0.01, "--p", metavar="P", min=1e-9, max=0.5, help="Level for --compare's seeds."
    ),
    out: Path = typer.Option(Path("runs"), metavar="FOLDER", help="Folder of the runs."),
    form: Form = typer.Option(Form.table, "--format", help="How the rows are printed."),
    as_json: bool = typer.Option(False, "--json", help="The same as --format json."),
) -> None:
    """List the runs made here; filter, compare and export them."""
    from rich.console import Console

    from speedrun.records.runs import read_runs
    from speedrun.records.select import runs_csv, select_runs
    from speedrun.records.table import runs_table

    form = Form.json if as_json else form
    every = read_runs(out)
    rows = select_runs(every, track=track, recipe=recipe, verdict=verdict, since=since, best=best)
    for word in words or ():
        kept = select_runs(every, text=word)
        rows = [row for row in rows if row in kept]
    if compare is not None:
        _compare(rows, *compare, p_value=p_value, out=out, as_json=form is Form.json)
    elif form is Form.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif form is Form.csv:
        print(runs_csv(rows), end="")
    elif not rows:
        fits = "no runs fit" if every else "no runs yet; `speedrun run` makes the first"
        say(f"{out}: {fits}")
    else:
        for name in dict.fromkeys(row.track for row in rows):
            mine = [row for row in rows if row.track == name]
            Console().print(runs_table(mine, title=name))


def _compare(
    rows: Sequence[RunRow], first: str, second: str, *, p_value: float, out: Path, as_json: bool
) -> None:
    """Means, gain, interval and p; and the settings in which the two groups differ."""
    from speedrun.records.select import compare_groups, named_runs

    ours, theirs = named_runs(rows, first), named_runs(rows, second)
    found = compare_groups(ours, theirs, p_value=p_value)
    settings = _settings(out, ours[0], theirs[0])
    if as_json:
        told: dict[str, Any] = dataclasses.asdict(found) | {"settings": settings}
        if found.comparison is not None:
            told["interval"] = found.comparison.interval()
        print(json.dumps(told, indent=2))
        return
    say(f"{first}: {found.first}\n{second}: {found.second}")
    if found.comparison is None or found.needed is None:
        say(f"one run of {first} has no spread: run more seeds for a test")
    else:
        low, high = found.comparison.interval()
        seeds = found.needed.if_mean_stays
        say(f"gain {found.comparison.gain:+.4f} bpb, 95 % interval {low:+.4f} to {high:+.4f}")
        say(
            f"one-sided p = {found.comparison.p:.3g}; "
            + (
                f"p <= {p_value:g} takes {seeds} runs of {first}, if mean and spread stay"
                if seeds
                else f"no number of runs of {first} shows it at p <= {p_value:g}"
            )
        )
    for key, (ours_value, theirs_value) in settings.items():
        say(f"{key:<32} {ours_value}  (was {theirs_value})")


def _settings(out: Path, ours: RunRow, theirs: RunRow) -> dict[str, tuple[Any, Any]]:
    """What differs in the recipes of two runs; nothing if one folder is gone."""
    from speedrun.errors import SpeedrunError
    from speedrun.recipes.load import diff_recipes, load_recipe

    try:
        left, right = (load_recipe(str(out / row.folder / "recipe.toml")) for row in (ours, theirs))
    except (OSError, SpeedrunError):
        return {}
    return {key: pair for key, pair in diff_recipes(left, right).items() if key != "seed"}
