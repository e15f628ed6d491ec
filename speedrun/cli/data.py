"""`speedrun data`: list corpora, fetch them, make one, check it, look into it."""

from __future__ import annotations

import json

import typer

from speedrun.cli import data_fetch as fetch
from speedrun.cli import data_inspect as inspect
from speedrun.cli import data_prepare as prepare
from speedrun.cli.screen import open_bar, say_aside

app = typer.Typer(help="Corpora: list, fetch, prepare, check, inspect.", no_args_is_help=True)

_JSON = typer.Option(False, "--json", help="Print JSON instead of text.")


@app.command("list", epilog="Example: speedrun data list")
def list_all(as_json: bool = _JSON) -> None:
    """List the corpora that have a name."""
    from speedrun.corpora.load import list_corpora

    rows = [{"name": corpus.name, "summary": corpus.summary} for corpus in list_corpora()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['summary']}")


@app.command("check", epilog="Example: speedrun data check stdlib")
def check(
    corpus: str = typer.Argument(
        metavar="CORPUS", help="Corpus name, .toml file or dataset folder."
    ),
    against: str = typer.Option(
        "", metavar="NAME|FILE", help="Corpus that the folder should be. Default: what it says."
    ),
    workers: int = typer.Option(
        0, metavar="N", min=0, show_default=False, help="Processes. Default: one per processor."
    ),
    as_json: bool = _JSON,
) -> None:
    """Hold a dataset against all that is known of it.

    Its files, hashes, ids, tokenizer, text, bytes and split, and documents in both splits.

    A corpus that is built here is built first, if need be. Exit code 0 all passed, 1 something is
    wrong, 2 something could not be decided.
    """
    from speedrun.data.build import default_workers
    from speedrun.data.check import check_folder
    from speedrun.data.corpus import find_folder
    from speedrun.data.seen import remember_overlap

    folder, spec = find_folder(corpus, against, echo=say_aside)
    with open_bar() as progress:
        report = check_folder(
            folder, spec=spec, workers=workers or default_workers(), progress=progress
        )
    remember_overlap(report)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        width = max(len(line.id) for line in report.lines)
        for line in report.lines:
            expected = (
                f" (expected: {line.expected})" if line.status == "FAIL" and line.expected else ""
            )
            fix = f"; {line.fix}" if line.fix else ""
            print(f"{line.status:<9} {line.id:<{width}}  {line.found}{expected}{fix}")
        print(f"{report.status} {report.folder}")
        if report.fingerprint:
            print(f"fingerprint {report.fingerprint}")
    raise typer.Exit(report.exit_code)


app.command(
    "fetch",
    short_help="Fetch a published corpus from the Hugging Face hub.",
    epilog="Example: speedrun data fetch golf-sp1024 --shards 1",
)(fetch.fetch)
app.command(
    "inspect",
    short_help="Show documents, their lengths and frequent tokens.",
    epilog="Example: speedrun data inspect stdlib --documents 2",
)(inspect.inspect)
app.command(
    "prepare",
    short_help="Make a dataset from text, JSON lines or parquet.",
    epilog="Example: speedrun data prepare docs.jsonl.zst --tokenizer sp.model --out D",
)(prepare.prepare)
