"""`speedrun`: one verb per file; this one joins them and turns errors into exit codes."""

from __future__ import annotations

import sys
import traceback

import typer

from speedrun import __version__
from speedrun.cli import data, pack, recipes, records, run, tracks, verify
from speedrun.errors import SpeedrunError

app = typer.Typer(
    name="speedrun",
    help="Train, pack, judge and record small language models under hard limits.",
    epilog="Example: speedrun run --budget 60s. Every command takes --debug for a traceback. "
    "Exit codes: 0 passed, 1 a rule is broken, 2 could not be done or decided, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts in half the time
    pretty_exceptions_enable=False,
)
app.command("run", epilog="Example: speedrun run --budget 60s --recipe pocket/default")(run.run)
app.command("pack", epilog="Example: speedrun pack runs/2026-11-22-default-s42 --cap 1MB")(
    pack.pack
)
app.command("verify", epilog="Example: speedrun verify runs/2026-11-22-default-s42/submission")(
    verify.verify
)
app.add_typer(records.app, name="records")
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(tracks.app, name="tracks")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _global_options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Train, pack, judge and record small language models under hard limits."""


def main() -> None:
    """Entry point of the `speedrun` command."""
    debug = "--debug" in sys.argv[1:]
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        app()
    except SpeedrunError as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
