"""`speedrun data fetch`: a published corpus from the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json

import typer

from speedrun.cli.screen import open_bar, say, say_aside


def fetch(
    name: str = typer.Argument(metavar="NAME", help="Corpus name or .toml file."),
    shards: int | None = typer.Option(
        None, metavar="N", min=1, help="Training shards. Default: 80, or all if there are fewer."
    ),
    repo: str = typer.Option("", metavar="OWNER/NAME", help="Another dataset repository."),
    prefix: str | None = typer.Option(
        None, metavar="PATH", help="Folder in it with manifest.json. Default: the corpus's."
    ),
    offline: bool = typer.Option(
        False, "--offline", help="Only look whether all is here and whole. Also HF_HUB_OFFLINE=1."
    ),
    workers: int = typer.Option(8, metavar="N", min=1, help="Files at a time."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Fetch shards and tokenizer of a published corpus.

    They go below SPEEDRUN_DATA, or ./data. Give the command again to go on after an interruption.
    """
    from speedrun.corpora.load import load_corpus
    from speedrun.data.corpus import data_root
    from speedrun.data.fetch import fetch_corpus, is_offline
    from speedrun.data.fetched import read_fetched
    from speedrun.errors import ConfigError

    spec = load_corpus(name)
    if spec.kind != "golf":
        raise ConfigError(f"corpus {spec.name} is built here; there is nothing to fetch")
    if repo:
        spec = dataclasses.replace(spec, repo=repo)
    if prefix is not None:
        spec = dataclasses.replace(spec, prefix=prefix)
    with open_bar() as progress:
        folder = fetch_corpus(
            spec,
            data_root(),
            shards=shards,
            offline=offline or is_offline(),
            workers=workers,
            echo=say_aside if as_json else say,
            progress=progress,
        )
    files = read_fetched(folder)
    total = sum(entry.bytes for entry in files.values())
    if as_json:
        facts = {"folder": str(folder), "files": len(files), "bytes": total}
        print(json.dumps(facts, indent=2))
    else:
        print(f"{folder}: {len(files):,} files, {total:,} bytes, hashes in fetched.json")
