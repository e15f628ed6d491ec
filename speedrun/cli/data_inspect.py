"""`speedrun data inspect`: documents as text, their lengths, the most frequent tokens."""

from __future__ import annotations

import json
from enum import StrEnum

import typer

from speedrun.cli.screen import say_aside

BAR_WIDTH = 40


class Split(StrEnum):
    """Which shards to look into."""

    train = "train"
    val = "val"


def inspect(
    corpus: str = typer.Argument(
        metavar="CORPUS", help="Corpus name, .toml file or dataset folder."
    ),
    split: Split = typer.Option(Split.val, help="Which shards to look into."),
    documents: int = typer.Option(3, metavar="N", min=0, help="Documents to show."),
    first: int = typer.Option(0, metavar="N", min=0, help="Number of the first one."),
    characters: int = typer.Option(400, metavar="N", min=1, help="Of each, at most."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Show decoded documents, a histogram of lengths and frequent tokens."""
    import dataclasses

    from speedrun.data.corpus import open_corpus
    from speedrun.data.inspection import frequent_tokens, measure_lengths, read_documents

    dataset = open_corpus(corpus, echo=say_aside)
    tokenizer = dataset.tokenizer()
    shards = dataset.val_shards if split is Split.val else dataset.train_shards
    lengths = measure_lengths(shards, dataset.bos_id)
    frequent = frequent_tokens(shards, tokenizer, count=20)
    shown = list(read_documents(shards, tokenizer, first=first, count=documents))
    if as_json:
        facts = {
            "name": dataset.name,
            "split": split.value,
            "lengths": dataclasses.asdict(lengths),
            "frequent": [
                {"id": token, "text": text, "share": round(share, 6)}
                for token, text, share in frequent
            ],
            "documents": [
                {"number": number, "tokens": tokens.size, "text": text[:characters]}
                for number, tokens, text in shown
            ],
        }
        print(json.dumps(facts, indent=2))
        return
    for number, tokens, text in shown:
        size = len(text.encode())
        print(f"--- document {number:,}: {tokens.size:,} tokens, {size:,} bytes")
        print(text[:characters] + (" [...]" if len(text) > characters else ""))
    print(f"--- {dataset.name}, {split.value}: {lengths.documents:,} documents")
    print("tokens: " + ", ".join(f"{name} {size:,}" for name, size in lengths.quantiles.items()))
    most = max((count for _, count in lengths.histogram), default=1)
    for limit, count in lengths.histogram:
        bar = "#" * -(-BAR_WIDTH * count // most)
        print(f"{'< ' + format(limit, ','):>12} {bar:<{BAR_WIDTH}} {count:,}")
    words = (f"{text!r} {100 * share:.1f} %" for _, text, share in frequent)
    print("frequent: " + ", ".join(words))
