"""`speedrun judge`: many submissions, unattended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import typer

from speedrun.cli.screen import say, say_aside
from speedrun.cli.verify import Level


def judge(
    queue: list[Path] = typer.Argument(
        metavar="FOLDER|QUEUE", help="Submissions, or folders whose entries are submissions."
    ),
    out: Path = typer.Option(
        Path("judged"), metavar="FOLDER", help="Verdicts, replies and the summary."
    ),
    jobs: int = typer.Option(
        1,
        metavar="N",
        min=1,
        help="How many at a time. They slow each other down, and evaluation is timed.",
    ),
    level: Level = typer.Option(Level.probe, help="How deep the judge looks."),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: their own."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    against: str = typer.Option(
        "", metavar="RECORDS", help="Also test against a record, or the best in a folder of them."
    ),
    retrain: bool = typer.Option(False, "--retrain", help="Also run each training again."),
    limit: str = typer.Option("2h", metavar="TIME", help="Longest for one submission."),
    allow_unsandboxed: bool = typer.Option(
        False, "--allow-unsandboxed", help="Run code that is not yours without bubblewrap."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Judge a submission or a queue of them; each gets a verdict, whatever it does.

    What has a verdict already is not judged again: after an interruption the
    same command goes on. Exit code: the worst, as of `speedrun verify`.
    """
    from speedrun.data.corpus import open_corpus
    from speedrun.data.lock import hold
    from speedrun.errors import DataError
    from speedrun.tracks.load import load_track
    from speedrun.units import parse_duration
    from speedrun.verify.queue import Order, Result, judge_queue, list_queue
    from speedrun.verify.verdict import Status

    words = ["--level", level.value]
    if track:
        words += ["--track", str(Path(track).resolve()) if track.endswith(".toml") else track]
        try:  # once, before several processes want it
            open_corpus(data or load_track(track).corpus, echo=say_aside)
        except DataError as error:
            say_aside(f"the corpus is not here: {error}")
    if data is not None:
        words += ["--data", str(data.resolve())]
    if against:
        words += ["--against", str(Path(against).resolve()) if Path(against).is_dir() else against]
    words += ["--retrain"] if retrain else []
    words += ["--allow-unsandboxed"] if allow_unsandboxed else []
    order = Order(out=out, options=tuple(words), jobs=jobs, limit_s=parse_duration(limit))
    entries = list(dict.fromkeys(path for each in queue for path in list_queue(each)))
    echo = say_aside if as_json else say

    def told(result: Result, is_new: bool) -> None:
        bpb = "" if result.val_bpb is None else f" {result.val_bpb:.4f} bpb"
        echo(f"{result.name}: {result.status}{bpb}{'' if is_new else ', judged before'}")

    with hold(out / ".lock", say_aside, remedy="choose another --out"):
        results = judge_queue(entries, order, told)
    if as_json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    else:
        print(
            f"{out}: {len(results)} verdicts; summary.md has the table, NAME/reply.md the replies"
        )
    found = {result.status for result in results}
    raise typer.Exit(1 if Status.FAIL in found else 2 if Status.UNDECIDED in found else 0)
