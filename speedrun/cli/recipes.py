"""`speedrun recipes`: list them, show one resolved, compare two."""

from __future__ import annotations

import json

import typer

app = typer.Typer(help="Named runs: list, show, diff.", no_args_is_help=True)

_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")


@app.command("list", epilog="Example: speedrun recipes list")
def list_all(as_json: bool = _JSON) -> None:
    """List the shipped recipes with what each extends."""
    from speedrun.recipes.load import list_recipes, parent_of

    rows = [
        {"name": run.name, "extends": parent_of(run.name), "summary": run.summary}
        for run in list_recipes()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['summary']}")


@app.command("show", epilog="Example: speedrun recipes show golf/pr649 --set seed=7")
def show(
    name: str = typer.Argument(metavar="RECIPE", help="Recipe name, or a path to a .toml file."),
    overrides: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="section.key=value, repeatable."
    ),
    as_json: bool = _JSON,
) -> None:
    """Print every key of a resolved recipe."""
    import tomli_w

    from speedrun.recipes.load import load_recipe

    values = load_recipe(name, overrides).to_dict()
    print(json.dumps(values, indent=2) if as_json else tomli_w.dumps(values).rstrip())


@app.command("diff", epilog="Example: speedrun recipes diff golf/baseline golf/pr649")
def diff(
    left: str = typer.Argument(metavar="LEFT", help="Recipe name or path."),
    right: str = typer.Argument(metavar="RIGHT", help="Recipe name or path."),
    as_json: bool = _JSON,
) -> None:
    """Print the keys in which two recipes differ."""
    from speedrun.recipes.load import diff_recipes, load_recipe

    changes = diff_recipes(load_recipe(left), load_recipe(right))
    if as_json:
        print(json.dumps(changes, indent=2))
        return
    width = max((len(key) for key in changes), default=0)
    for key, (ours, theirs) in changes.items():
        print(f"{key:<{width}}  {ours} -> {theirs}")
