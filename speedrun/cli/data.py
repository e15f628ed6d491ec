"""`speedrun data`: list corpora, fetch them, make one, check it, look into it."""

from __future__ import annotations

import json

import typer

from speedrun.cli import data_prepare as prepare
from speedrun.cli.screen import say_aside

app = typer.Typer(help="Corpora: list, prepare, check.", no_args_is_help=True)

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
    as_json: bool = _JSON,
) -> None:
    """Verify a corpus: every byte of its validation split.

    A corpus that is built here is built first, if need be.
    """
    from speedrun.data.corpus import open_corpus

    dataset = open_corpus(corpus, echo=say_aside)
    dataset.verify_validation()
    tokens = dataset.val_tokens()
    facts = {
        "name": dataset.name,
        "folder": str(dataset.folder),
        "vocab_size": dataset.vocab_size,
        "train_shards": len(dataset.train_shards),
        "validation_tokens": len(tokens),
        "validation_bytes": dataset.val_raw_bytes,
        "bytes_per_token": round(dataset.val_raw_bytes / len(tokens), 4),
        "token_bytes": dataset.val_token_bytes,
        "is_lossless": dataset.val_token_bytes == dataset.val_raw_bytes,
        "fingerprint": dataset.fingerprint,
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        shown = f"{value:,}" if type(value) is int else value
        print(f"{key.replace('_', ' '):<18} {shown}")


app.command(
    "prepare",
    short_help="Make a dataset from text, JSON lines or parquet.",
    epilog="Example: speedrun data prepare docs.jsonl.zst --tokenizer sp.model --out D",
)(prepare.prepare)
