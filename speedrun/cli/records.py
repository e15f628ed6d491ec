"""`speedrun records`: the local runs, the accepted records, and the table in the README."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speedrun.cli.screen import print_runs, say_aside
from speedrun.cli.verify import Level, claimed_track

if TYPE_CHECKING:
    from speedrun.records.record import Record

app = typer.Typer(
    help="Runs and records: list, compare, add, render.",
    no_args_is_help=True,
)

_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")
_ROOT = typer.Option(Path("records"), "--root", metavar="FOLDER", help="Folder of the records.")
_README = typer.Option(
    Path("README.md"), "--readme", metavar="FILE", help="File whose table is written anew."
)
README_PUBLISHED = 5
"""Best published rows of a track that a README shows beside the records."""


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
    published: bool = typer.Option(
        False, "--published", help="Also what contests published and nobody here verified."
    ),
    root: Path = _ROOT,
    as_json: bool = _JSON,
) -> None:
    """List the accepted records, best first."""
    from rich.console import Console

    from speedrun.records.published.load import load_published
    from speedrun.records.record import list_records
    from speedrun.records.table import records_table

    tracks = [track] if track else _tracks(root)
    records = [record for name in tracks for record in list_records(root, name)]
    if published:
        records += load_published(track)
    if as_json:
        print(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
    elif records:
        for name in dict.fromkeys(record.track for record in records):
            mine = [record for record in records if record.track == name]
            Console().print(records_table(mine, title=name))
    else:
        print(f"no records in {root} yet; `speedrun records add` files the first")


@app.command("add", epilog="Example: speedrun records add submissions/mine --slug first-record")
def add(
    submissions: list[Path] = typer.Argument(
        metavar="SUBMISSION", help="Submission folders: one of all seeds, or one for each."
    ),
    slug: str = typer.Option(..., metavar="WORDS", help="The one idea, lower-case-with-dashes."),
    summary: str = typer.Option(
        "", metavar="TEXT", help="One sentence: what changed. Default: the submission's."
    ),
    based_on: str = typer.Option(
        "", metavar="NAME", help="Record that it builds on. Default: as the submission says."
    ),
    non_record: bool = typer.Option(
        False, "--non-record", help="File it as verified, without a claim to be the best."
    ),
    level: Level = typer.Option(Level.score, help="How deep it is judged."),
    date: str = typer.Option("", metavar="YYYY-MM-DD", help="Default: today, by UTC."),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: their own."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    runs: Path | None = typer.Option(
        None, metavar="FOLDER", help="Table of local runs. Default: where the submissions lie."
    ),
    allow_unsandboxed: bool = typer.Option(
        False, "--allow-unsandboxed", help="Run code that is not yours without bubblewrap."
    ),
    root: Path = _ROOT,
    readme: Path = _README,
    as_json: bool = _JSON,
) -> None:
    """File submissions as a record, if they beat the standing one.

    Each is judged again; there must be one for every seed that the track asks for.
    Runs of the recipe that were not handed in count in the test.
    """
    from speedrun.cli.seeds import undeclared_runs
    from speedrun.data.corpus import open_corpus
    from speedrun.errors import RecordError
    from speedrun.pack.parts import every_seed, part_folders
    from speedrun.records.filing import add_record
    from speedrun.tracks.load import load_track
    from speedrun.verify.judge import verify_submission
    from speedrun.verify.rules import read_claims
    from speedrun.verify.verdict import Status
    from speedrun.verify.whole import whole

    wholes = [folder for folder in submissions if part_folders(folder)]
    folders = every_seed(submissions)
    for folder in wholes:
        if (found := whole(folder)).status is not Status.PASS:
            raise RecordError(f"{folder}: {found.evidence}; {found.fix}")
    told = read_claims(wholes[0]) if wholes else {}
    chosen = load_track(track or claimed_track(folders[0]))
    dataset = open_corpus(data or chosen.corpus, echo=say_aside)
    verdicts = []
    for folder in folders:
        verdicts.append(
            verify_submission(
                folder,
                chosen,
                dataset,
                level=level.value,
                allow_unsandboxed=allow_unsandboxed,
            )
        )
        say_aside(f"{folder}: {verdicts[-1].status}")
    filed = add_record(
        root,
        folders,
        verdicts,
        chosen,
        slug=slug,
        summary=summary or str(told.get("blurb") or slug),
        date=date or None,
        author=str(told.get("author") or ""),
        github_id=str(told.get("github_id") or ""),
        based_on=based_on or str(told.get("based_on") or ""),
        as_non_record=non_record,
        undeclared=[row.val_bpb for row in undeclared_runs(folders, chosen, runs)],
    )
    if readme.exists():
        _render(root, readme)
    if as_json:
        print(json.dumps(dataclasses.asdict(filed.record), indent=2))
        return
    print(f"{filed.folder}: {filed.record.val_bpb}, {filed.record.status.words}")
    if filed.shown is not None:
        print("; ".join(filter(None, (filed.shown.measured, filed.shown.evidence))))


@app.command("compare", epilog="Example: speedrun records compare records/pocket/A sliding-window")
def compare(
    challenger: str = typer.Argument(
        metavar="CHALLENGER", help="Record folder, or name or slug of a record."
    ),
    holder: str = typer.Argument(metavar="HOLDER", help="The same."),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: their own."
    ),
    root: Path = _ROOT,
    as_json: bool = _JSON,
) -> None:
    """Does the first record beat the second by its track's margin?

    Says the difference, its 95 % interval, p of Welch's one-sided test, and how
    many seeds it takes.
    """
    from speedrun.records.record import Standing, compare_records, margin_of, scores
    from speedrun.stats import seeds_needed
    from speedrun.tracks.load import load_track

    new, old = _find(challenger, root), _find(holder, root)
    chosen = load_track(track or new.track)
    found = compare_records(new, old, chosen)
    needed = seeds_needed(
        scores(new), scores(old), p_value=chosen.record.p_value, margin=found.margin
    )
    low, high = found.interval()
    if as_json:
        told = {"interval": [low, high], "seeds_needed": dataclasses.asdict(needed)}
        print(json.dumps(dataclasses.asdict(found) | told, indent=2))
        return
    for record in (new, old):
        note = f" ({record.status.words})" if record.status is Standing.PUBLISHED else ""
        print(f"{record.name}: {record.val_bpb}{note}")
    print(f"gain {found.gain:+.4f} bpb, margin {found.margin:.4f}, one-sided p = {found.p:.3g}")
    print(f"95 % interval of the gain {low:+.4f} to {high:+.4f}")
    if margin_of(old, chosen) is None:
        print("nothing tells the older record's tokens per byte, so its margin counts as zero")
    if needed.if_mean_stays is None:
        print(f"no number of seeds shows this gain at p <= {chosen.record.p_value:g}")
    else:
        power = needed.for_power or "no number of"
        print(
            f"seeds needed at p <= {chosen.record.p_value:g}: {needed.if_mean_stays} if mean and "
            f"spread stay, {power} to find it with 80 % probability; there are {len(new.seeds)}"
        )


@app.command("import", epilog="Example: speedrun records import parameter-golf/records --dry-run")
def import_all(
    path: Path = typer.Argument(metavar="FOLDER", help="A published record, or a tree of them."),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="What they are for. Default: as each says."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be filed, and stop."),
    root: Path = _ROOT,
    as_json: bool = _JSON,
) -> None:
    """File published folders as what they are: not verified here.

    Every folder gives a record, or a reason. Exit code 2 if one gave none.
    """
    from speedrun.errors import RecordError
    from speedrun.records.imports import import_records, write_imported
    from speedrun.tracks.load import load_track

    rows = []
    for found in import_records(path, load_track(track) if track else None):
        reason = found.reason
        if found.record is not None and not dry_run:
            try:
                write_imported(root, found)
            except RecordError as error:
                reason = str(error)
        rows.append(
            {
                "place": found.place,
                "reason": reason,
                "record": dataclasses.asdict(found.record) if found.record else None,
            }
        )
        if not as_json:
            print(f"{found.place}: {_told(found.record) if not reason else f'none: {reason}'}")
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"{path}: no folder with a submission*.json or a log")
    raise typer.Exit(2 if not rows or any(row["reason"] for row in rows) else 0)


@app.command("withdraw", epilog="Example: speedrun records withdraw records/pocket/A --reason WHY")
def withdraw(
    record: Path = typer.Argument(metavar="RECORD", help="Record folder."),
    reason: str = typer.Option(..., metavar="TEXT", help="Why it no longer counts."),
    date: str = typer.Option("", metavar="YYYY-MM-DD", help="Default: today, by UTC."),
    root: Path = _ROOT,
    readme: Path = _README,
    as_json: bool = _JSON,
) -> None:
    """Withdraw a record: it stays in the table, struck through.

    The reason and the date stand in its record.json and in the table.
    """
    from speedrun.records.record import today
    from speedrun.records.record import withdraw as withdraw_record

    changed = withdraw_record(record, reason, date or today())
    if readme.exists():
        _render(root, readme)
    if as_json:
        print(json.dumps(dataclasses.asdict(changed), indent=2))
    else:
        print(f"{record}: withdrawn")


@app.command("render", epilog="Example: speedrun records render --csv records/records.csv")
def render(
    root: Path = _ROOT,
    readme: Path = _README,
    csv: Path | None = typer.Option(None, metavar="FILE", help="All records as CSV, too."),
    json_file: Path | None = typer.Option(None, metavar="FILE", help="All records as JSON, too."),
    as_json: bool = _JSON,
) -> None:
    """Write the table of records into a README, between its markers.

    Beside the records stand the best published rows of each contest; CSV and
    JSON have all of them.
    """
    from speedrun.files import write_atomic
    from speedrun.records.table import csv_table

    _render(root, readme)
    if csv is not None or json_file is not None:
        every = _every(root)
        if csv is not None:
            write_atomic(csv, csv_table(every).encode())
        if json_file is not None:
            values = [dataclasses.asdict(record) for record in every]
            write_atomic(json_file, (json.dumps(values, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps({"readme": str(readme), "tracks": _tracks(root)}))
    else:
        print(f"{readme}: table of {', '.join(_tracks(root)) or 'no records yet'}")


@app.command("site", epilog="Example: speedrun records site --out site")
def site(
    out: Path = typer.Option(Path("site"), metavar="FOLDER", help="Folder of the pages."),
    title: str = typer.Option("Records", metavar="TEXT", help="Stands on every page."),
    tracks: list[str] = typer.Option(
        [], "--track", metavar="NAME", help="Only these tracks, in this order."
    ),
    published: bool = typer.Option(
        True, help="Also show what contests published and nobody here verified."
    ),
    root: Path = _ROOT,
    as_json: bool = _JSON,
) -> None:
    """Write the records as a site of files that open without a server.

    A page for each track with its ladder and table, a page for each record with
    its evidence, and the tables as CSV and JSON.
    """
    from speedrun.pages.site import build_site

    written = build_site(root, out, title=title, tracks=tracks, published=published)
    if as_json:
        print(json.dumps({"index": str(written[0]), "files": [str(path) for path in written]}))
    else:
        print(f"{written[0]}: {len(written)} files")


def _render(root: Path, readme: Path) -> None:
    """One table for each track: its records, and the best that was published for it."""
    from speedrun.records.record import Standing
    from speedrun.records.table import markdown_table, update_readme

    every = _every(root)
    tables = []
    for name in dict.fromkeys([*_tracks(root), *sorted({record.track for record in every})]):
        mine = [record for record in every if record.track == name]
        published = [record for record in mine if record.status is Standing.PUBLISHED]
        left_out = published[README_PUBLISHED:]
        shown = [record for record in mine if record not in left_out]
        tables.append(markdown_table(shown, link_root=root.as_posix()))
        if left_out:
            tables[-1] += f"\n{len(left_out)} more published rows: `speedrun records list"
            tables[-1] += f" --published --track {name}`.\n"
    update_readme(readme, "\n".join(filter(None, tables)))


def _every(root: Path) -> list[Record]:
    """Records of all tracks here, then published ones, best first in each."""
    from speedrun.records.published.load import load_published
    from speedrun.records.record import list_records

    here = [record for name in _tracks(root) for record in list_records(root, name)]
    names = {(record.track, record.slug) for record in here}
    return here + [row for row in load_published() if (row.track, row.slug) not in names]


def _find(text: str, root: Path) -> Record:
    """A record by folder, by name or by slug.

    Raises
        RecordError: nothing, or more than one thing, is called so.
    """
    from speedrun.errors import RecordError
    from speedrun.records.record import read_record

    if Path(text).is_dir():
        return read_record(Path(text))
    found = [record for record in _every(root) if text in (record.name, record.slug)]
    if len(found) != 1:
        raise RecordError(
            f"{text!r} is no folder, and {len(found)} records have this name; see "
            "`speedrun records list --published`"
        )
    return found[0]


def _told(record: Record | None) -> str:
    assert record is not None
    parts = [f"{record.track} {record.date} {record.author or 'author unknown'}"]
    if record.claimed_bpb is not None:
        parts.append(f"claims {record.claimed_bpb:g} bpb")
    if record.seeds:
        parts.append(f"seeds {record.val_bpb}")
    if record.largest_bytes is not None:
        parts.append(f"{record.largest_bytes:,} bytes")
    if record.findings:
        parts.append(f"{len(record.findings)} findings")
    return ", ".join(parts)


def _tracks(root: Path) -> list[str]:
    """Tracks that have a folder of records."""
    return sorted(path.name for path in root.glob("[!.]*") if path.is_dir())
