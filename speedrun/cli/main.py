"""`speedrun`: one verb per file; this one joins them and turns errors into exit codes."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import typer

from speedrun import __version__
from speedrun.cli import (
    bench,
    compress,
    data,
    doctor,
    judge,
    pack,
    recipes,
    records,
    report,
    run,
    runs,
    submit,
    tracks,
    verify,
    watch,
)
from speedrun.cli.signals import exit_cleanly
from speedrun.errors import SpeedrunError

HELP = "Train, pack, judge and record small language models under hard limits."

app = typer.Typer(
    name="speedrun",
    help=HELP,
    epilog="Start with `speedrun run`. Every command has --help, most have --json, and --debug "
    "shows the traceback of an error. Exit codes: 0 passed, 1 a rule is broken, 2 could not be "
    "done or decided, 130 interrupted (Ctrl-C), 143 terminated.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts in half the time
    pretty_exceptions_enable=False,
)
app.command(
    "run",
    short_help="Train inside the budget, pack, verify, add to the table.",
    epilog="Example: speedrun run --budget 60s --recipe pocket/default",
)(run.run)
app.command(
    "watch",
    short_help="Follow a run on the terminal.",
    epilog="Example: speedrun watch",
)(watch.watch)
app.command(
    "runs",
    short_help="List the runs made here; filter, compare, export.",
    epilog="Example: speedrun runs --best 5 --track pocket",
)(runs.runs)
app.command(
    "report",
    short_help="Write a page about a run, or several laid over one another.",
    epilog="Example: speedrun report runs/RUN-A runs/RUN-B --out both.html",
)(report.report)
app.command(
    "pack",
    short_help="Pack a run again, with other bits or another codec.",
    epilog="Example: speedrun pack runs/RUN --codec best",
)(pack.pack)
app.command(
    "verify",
    short_help="Judge a submission.",
    epilog="Example: speedrun verify runs/RUN/submission",
)(verify.verify)
app.command(
    "submit",
    short_help="Write the folder to hand in from one run for each seed.",
    epilog="Example: speedrun submit runs/*/ --out submissions/mine",
)(submit.submit)
app.command(
    "judge",
    short_help="Judge a queue of submissions, unattended.",
    epilog="Example: speedrun judge submissions --out judged --jobs 2",
)(judge.judge)
app.command(
    "compress",
    short_help="Compress a file with a submission's predictions.",
    epilog="Example: speedrun compress notes.txt --model runs/RUN/submission",
)(compress.compress)
app.command(
    "decompress",
    short_help="Give back a compressed file.",
    epilog="Example: speedrun decompress notes.txt.lm --model runs/RUN/submission",
)(compress.decompress)
app.command(
    "bench",
    short_help="Measure a recipe's step on this machine.",
    epilog="Example: speedrun bench --recipe golf/baseline --compare",
)(bench.bench)
app.command(
    "doctor",
    short_help="Say whether this machine is ready, and what to mend.",
    epilog="Example: speedrun doctor",
)(doctor.doctor)
app.add_typer(records.app, name="records")
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(tracks.app, name="tracks")

_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
"""`click.ClickException`, of the click that this typer brings or of the one beside it."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback(help=HELP)
def _global_options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the `speedrun` command."""
    words = sys.argv[1:]
    exit_cleanly()
    try:
        plain = [word for word in words if word != "--debug"]
        sys.exit(app(plain, prog_name="speedrun", standalone_mode=False))
    except (SpeedrunError, OSError, _USAGE_ERROR) as error:
        if "--debug" in words:
            traceback.print_exc()
        sys.exit(_report(error))


def _report(error: Any) -> int:
    """Print an error for a person, in one line; returns the exit code."""
    if not isinstance(error, _USAGE_ERROR):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, SpeedrunError) else SpeedrunError.exit_code
    message, context = error.format_message(), getattr(error, "ctx", None)
    if "\n" in message:  # a command without any word: its help
        print(message, file=sys.stderr)
    else:
        command = context.command_path if context else "speedrun"
        print(f"error: {message.rstrip('.')}; see {command} --help", file=sys.stderr)
    return int(error.exit_code)


if __name__ == "__main__":
    main()
