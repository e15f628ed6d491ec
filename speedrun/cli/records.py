"""`speedrun records`: the local runs, the accepted records, and the table in the README."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import typer

from speedrun.cli.screen import print_runs, say_aside
from speedrun.cli.verify import claimed_track

app = typer.Typer(help="Runs and records: runs, list, add, compare, render.", no_args_is_help=True)

_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")
_ROOT = typer.Option(Path("records"), "--root", metavar="FOLDER", help="Folder of the records.")


@app.command("runs", epilog="Example: speedrun records runs")
def runs(
    out: Path = typer.Option(Path("runs"), metavar="FOLDER", help="Folder of the runs."),
    as_json: bool = _JSON,
) -> None:
    """List the runs made here."""
    from speedrun.records.runs import read_runs

    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in read_runs(out)], indent=2))
    else:
        print_runs(out)


@app.command("list", epilog="Example: speedrun records list --track pocket")
def list_all(
    track: str = typer.Option("", metavar="NAME|FILE", help="Only this track."),
    root: Path = _ROOT,
    as_json: bool = _JSON,
) -> None:
    """List the accepted records, best first."""
    from rich.console import Console

    from speedrun.records.record import list_records
    from speedrun.records.table import records_table

    tracks = [track] if track else _tracks(root)
    records = [record for name in tracks for record in list_records(root, name)]
    if as_json:
        print(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
    elif records:
        Console().print(records_table(records))
    else:
        print(f"no records in {root} yet; `speedrun records add` files the first")


@app.command("add", epilog="Example: speedrun records add runs/*/submission --slug first-record")
def add(
    submissions: list[Path] = typer.Argument(
        metavar="SUBMISSION", help="Submission folders, one per seed."
    ),
    slug: str = typer.Option(..., metavar="WORDS", help="The one idea, lower-case-with-dashes."),
    summary: str = typer.Option("", metavar="TEXT", help="One sentence: what changed."),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: their own."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    root: Path = _ROOT,
    readme: Path = typer.Option(
        Path("README.md"), metavar="FILE", help="File whose table is written anew."
    ),
    as_json: bool = _JSON,
) -> None:
    """File submissions as a record, if they beat the standing one.

    Each is judged again; there must be one for every seed that the track asks for.
    """
    from speedrun.data.corpus import open_corpus
    from speedrun.records.record import add_record
    from speedrun.tracks.load import load_track
    from speedrun.verify.judge import verify_submission

    chosen = load_track(track or claimed_track(submissions[0]))
    dataset = open_corpus(data or chosen.corpus)
    verdicts = []
    for folder in submissions:
        verdicts.append(verify_submission(folder, chosen, dataset))
        say_aside(f"{folder}: {verdicts[-1].status}")
    record, comparison = add_record(
        root, submissions, verdicts, chosen, slug=slug, summary=summary or slug
    )
    if readme.exists():
        _render(root, readme)
    if as_json:
        print(json.dumps(dataclasses.asdict(record), indent=2))
        return
    print(f"{root / record.track / record.name}: {record.val_bpb}")
    if comparison is not None:
        print(f"gain {comparison.gain:.4f} bpb, p = {comparison.p:.3g}")


@app.command(
    "compare", epilog="Example: speedrun records compare records/pocket/A records/pocket/B"
)
def compare(
    challenger: Path = typer.Argument(metavar="CHALLENGER", help="Record folder."),
    holder: Path = typer.Argument(metavar="HOLDER", help="Record folder."),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: their own."
    ),
    as_json: bool = _JSON,
) -> None:
    """Does the first record beat the second by its track's margin?"""
    from speedrun.records.record import compare_records, read_record
    from speedrun.tracks.load import load_track

    new, old = read_record(challenger), read_record(holder)
    found = compare_records(new, old, load_track(track or new.track))
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    print(f"{new.slug}: {new.val_bpb}\n{old.slug}: {old.val_bpb}")
    print(f"gain {found.gain:.4f} bpb, margin {found.margin:.4f}, one-sided p = {found.p:.3g}")
    low, high = found.interval()
    print(f"95 % interval of the gain {low:+.4f} to {high:+.4f}")


@app.command("render", epilog="Example: speedrun records render --readme README.md")
def render(
    root: Path = _ROOT,
    readme: Path = typer.Option(
        Path("README.md"), metavar="FILE", help="File with the two markers."
    ),
    as_json: bool = _JSON,
) -> None:
    """Write the table of records into a README, between its markers."""
    _render(root, readme)
    if as_json:
        print(json.dumps({"readme": str(readme), "tracks": _tracks(root)}))
    else:
        print(f"{readme}: table of {', '.join(_tracks(root)) or 'no records yet'}")


def _render(root: Path, readme: Path) -> None:
    from speedrun.records.record import list_records
    from speedrun.records.table import markdown_table, update_readme

    tables = [
        markdown_table(list_records(root, name), link_root=root.as_posix())
        for name in _tracks(root)
    ]
    update_readme(readme, "\n".join(filter(None, tables)))


def _tracks(root: Path) -> list[str]:
    """Tracks that have a folder of records."""
    return sorted(path.name for path in root.glob("*") if path.is_dir())
