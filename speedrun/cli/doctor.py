"""`speedrun doctor`: is this machine ready, and what to mend."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from speedrun.cli.screen import say


def doctor(
    out: Path = typer.Option(
        Path("runs"), metavar="FOLDER", help="Where runs would be written: its disk is tried."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Look at GPUs, processor, memory, disk, compilers and messages, and say what to mend.

    Takes some ten seconds, longer with GPUs. Exit code 0 ready, 1 something is wrong. A NOTE only
    costs speed.
    """
    from speedrun.measure.doctor import examine, exit_code

    lines = []
    for line in examine(out):
        lines.append(line)
        if not as_json:
            expected = f" (expected: {line.expected})" if line.fix and line.expected else ""
            fix = f"; {line.fix}" if line.fix else ""
            say(f"{line.status:<6}{line.name:<22} {line.found}{expected}{fix}")
    if as_json:
        print(json.dumps([line.to_dict() for line in lines], indent=2))
    raise typer.Exit(exit_code(lines))
