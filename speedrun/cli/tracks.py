"""`speedrun tracks`: which contests there are and what they allow."""

from __future__ import annotations

import json
from pathlib import Path

import typer

app = typer.Typer(help="Contests and their limits: list, show, rules.", no_args_is_help=True)

_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")


@app.command("list", epilog="Example: speedrun tracks list")
def list_all(as_json: bool = _JSON) -> None:
    """List the shipped tracks."""
    from speedrun.tracks.load import list_tracks

    tracks = list_tracks()
    if as_json:
        print(json.dumps([track.to_dict() for track in tracks], indent=2))
        return
    width = max(len(track.name) for track in tracks)
    for track in tracks:
        print(f"{track.name:<{width}}  {track.summary}")


@app.command("show", epilog="Example: speedrun tracks show pocket")
def show(
    name: str = typer.Argument(metavar="TRACK", help="Track name, or a path to a .toml file."),
    as_json: bool = _JSON,
) -> None:
    """Print the limits and rules of a track."""
    import tomli_w

    from speedrun.tracks.load import load_track

    values = load_track(name).to_dict()
    print(json.dumps(values, indent=2) if as_json else tomli_w.dumps(values).rstrip())


@app.command("rules", epilog="Example: speedrun tracks rules pocket --out RULES.md")
def rules(
    name: str = typer.Argument(metavar="TRACK", help="Track name, or a path to a .toml file."),
    out: Path | None = typer.Option(None, metavar="FILE", help="Write here instead of printing."),
    as_json: bool = _JSON,
) -> None:
    """Write the rules of a contest as a Markdown page.

    All of it is from the track file and the conditions that the judge asks.
    """
    from speedrun.files import write_atomic
    from speedrun.records.rules_page import rules_page
    from speedrun.tracks.load import load_track

    track = load_track(name)
    page = rules_page(track)
    if out is not None:
        write_atomic(out, page.encode())
    if as_json:
        print(json.dumps({"track": track.to_dict(), "page": page}, indent=2))
    else:
        print(page.rstrip() if out is None else f"{out}: rules of {track.name} v{track.version}")
