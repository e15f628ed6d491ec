"""`speedrun report`: a page about a run, or about several laid over one another."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from speedrun.cli.screen import say_aside


def report(
    folders: list[Path] = typer.Argument(metavar="RUN", help="Run folders, finished or not."),
    out: Path | None = typer.Option(
        None, metavar="FILE", help="Default: RUN/report.html, or report.html for several."
    ),
    samples: int = typer.Option(
        0, metavar="N", min=0, max=20, help="Write N continuations with the packed model first."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="For --samples: dataset folder. Default: the track's."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print where the page is as JSON."),
) -> None:
    """Write a page of curves, bytes, the clock and the verdict.

    Several runs are laid over one another, with what differs in their recipes.
    """
    from speedrun.pages.report import REPORT, write_report

    if samples:
        from speedrun.cli.folder import read_folder
        from speedrun.data.corpus import open_corpus
        from speedrun.pages.samples import write_samples

        for folder in folders:
            _, track = read_folder(folder)
            dataset = open_corpus(data or track.corpus, echo=say_aside)
            write_samples(folder, dataset, count=samples)
    page = out or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    write_report(folders, page)
    print(json.dumps({"report": str(page)}) if as_json else page)
