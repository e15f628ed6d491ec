"""`speedrun data prepare`: sources, tokenizer, filters and split into a dataset folder."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speedrun.cli.screen import open_bar, say, say_aside

if TYPE_CHECKING:
    from speedrun.data.dataset import Dataset, Manifest
    from speedrun.data.tokenizer import Tokenizer


class Order(StrEnum):
    """How documents are ordered before the split."""

    hash = "hash"
    stream = "stream"


def prepare(
    sources: list[str] = typer.Argument(
        metavar="SOURCES",
        help=".txt, .jsonl(.zst|.gz) or .parquet: a file, a folder or a pattern. With PATH=WEIGHT "
        "each, a mixture by bytes of text, which ends where one of its sources does.",
    ),
    tokenizer: str = typer.Option(
        ...,
        metavar="FILE|train:N|bytes",
        help="SentencePiece .model, tokenizer.json, a size to train here, or bytes.",
    ),
    out: Path = typer.Option(..., metavar="FOLDER", help="Dataset folder to make."),
    validation_documents: int | None = typer.Option(
        None,
        metavar="N",
        min=1,
        show_default=False,
        help="Held out: the first N documents of the order. Default: 120.",
    ),
    validation_frac: float | None = typer.Option(
        None, metavar="F", help="Held out instead: this share of the documents, by hash of id."
    ),
    order: Order = typer.Option(
        Order.hash, help="By hash of id, which shuffles, or as the sources give them."
    ),
    shard_tokens: int = typer.Option(
        100_000_000, metavar="N", min=1, max=2_000_000_000, help="Tokens of a shard."
    ),
    eos: bool = typer.Option(
        False, "--eos", help="End documents with EOS; they begin with BOS always."
    ),
    keep_duplicates: bool = typer.Option(
        False, "--keep-duplicates", help="Keep documents whose text came before."
    ),
    keep_overlap: bool = typer.Option(
        False, "--keep-overlap", help="Keep training documents like a validation document."
    ),
    min_bytes: int = typer.Option(1, metavar="N", help="Leave out shorter documents."),
    max_bytes: int = typer.Option(0, metavar="N", help="Leave out longer ones; 0 is no limit."),
    max_digit_frac: float = typer.Option(1.0, metavar="F", help="Largest share of digits."),
    min_alpha_frac: float = typer.Option(0.0, metavar="F", help="Smallest share of letters."),
    skip_unreadable: bool = typer.Option(
        False, "--skip-unreadable", help="Count records without readable text; do not stop."
    ),
    text_key: str = typer.Option("text", metavar="KEY", help="Key or column of the text."),
    id_key: str = typer.Option("id", metavar="KEY", help="Key or column of the id."),
    seed: int = typer.Option(0, metavar="N", help="Of the order in which a mixture is drawn."),
    workers: int = typer.Option(
        0, metavar="N", min=0, show_default=False, help="Processes. Default: one per processor."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Make a dataset: read, filter, tokenise and split documents of any amount.

    The folder has shards, a manifest, the tokenizer and the raw validation text. Give the same
    command again after an interruption: it goes on, and the result is the same to the byte.
    """
    from speedrun.data.build import build_dataset, default_workers
    from speedrun.data.filters import Filters
    from speedrun.data.job import Job
    from speedrun.data.parts import Encoding
    from speedrun.data.plan import Layout
    from speedrun.data.sources import find_source
    from speedrun.errors import ConfigError

    if validation_frac is not None and not 0 < validation_frac < 1:
        raise ConfigError(f"--validation-frac {validation_frac}: must be between 0 and 1")
    if validation_frac is not None and validation_documents is not None:
        raise ConfigError("--validation-documents and --validation-frac: give one of the two")
    found = tuple(find_source(word) for word in sources)
    if len({source.weight is None for source in found}) > 1:
        raise ConfigError("some sources have a weight and some none; give one to each, or to none")
    count = None if validation_frac else validation_documents or 120
    job = Job(
        name=out.name,
        sources=found,
        encoding=Encoding(
            filters=Filters(
                min_bytes=min_bytes,
                max_bytes=max_bytes,
                max_digit_frac=max_digit_frac,
                min_alpha_frac=min_alpha_frac,
            ),
            with_eos=eos,
            text_key=text_key,
            id_key=id_key,
            skip_unreadable=skip_unreadable,
        ),
        layout=Layout(
            order=order.value,
            validation_count=count,
            validation_frac=validation_frac or 0.0,
            shard_tokens=shard_tokens,
            keep_duplicates=keep_duplicates,
            keep_overlap=keep_overlap,
            seed=seed,
        ),
    )
    with open_bar() as progress:
        dataset = build_dataset(
            job,
            _open_tokenizer(tokenizer),
            out,
            workers=workers or default_workers(),
            echo=say_aside if as_json else say,
            progress=progress,
        )
    if as_json:
        print(json.dumps(_facts(dataset), indent=2))
    else:
        _print(dataset)


def _open_tokenizer(word: str) -> Tokenizer | int:
    """A tokenizer, or the size of one to train."""
    from speedrun.data.byte_ids import ByteIds
    from speedrun.data.tokenizer import Tokenizer
    from speedrun.errors import ConfigError

    if word == "bytes":
        return ByteIds()
    if not word.startswith("train:"):
        return Tokenizer.load(Path(word))
    size = word.removeprefix("train:").replace("_", "")
    if not size.isdecimal() or not 264 <= int(size) <= 65_536:
        raise ConfigError(f"--tokenizer {word}: expected train:1024, from 264 to 65536 pieces")
    return int(size)


def _print(dataset: Dataset) -> None:
    manifest = dataset.manifest
    assert manifest is not None
    print(
        f"{dataset.folder}: {len(dataset.train_shards)} training shards of "
        f"{manifest.train_tokens:,} tokens, {manifest.val_tokens:,} validation tokens, "
        f"{manifest.val_raw_bytes:,} bytes"
    )
    if left_out := _left_out(manifest):
        print("left out: " + ", ".join(f"{count:,} {why}" for why, count in left_out.items()))
    if not manifest.lossless:
        lost = manifest.val_raw_bytes - manifest.val_token_bytes
        print(f"note: the tokenizer loses text, {lost:,} bytes of the validation documents")


def _left_out(manifest: Manifest) -> dict[str, int]:
    counts: dict[str, int] = {}
    for source in manifest.sources:
        for why, count in source.left_out.items():
            counts[why] = counts.get(why, 0) + count
    return counts


def _facts(dataset: Dataset) -> dict[str, object]:
    manifest = dataset.manifest
    assert manifest is not None
    return {
        "folder": str(dataset.folder),
        "train_shards": len(dataset.train_shards),
        "train_tokens": manifest.train_tokens,
        "validation_tokens": manifest.val_tokens,
        "validation_bytes": manifest.val_raw_bytes,
        "token_bytes": manifest.val_token_bytes,
        "is_lossless": manifest.lossless,
        "documents": sum(source.documents for source in manifest.sources),
        "left_out": _left_out(manifest),
        "merkle_root": manifest.merkle_root,
        "fingerprint": dataset.fingerprint,
    }
