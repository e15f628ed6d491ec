"""`speedrun pack`: pack a finished run again, with another number of bits or codec."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def pack(
    run: Path = typer.Argument(help="Run folder (with weights.safetensors and recipe.toml)."),
    out: Path | None = typer.Option(None, help="Submission folder. Default: RUN/submission."),
    cap: str = typer.Option("", help="Largest total size, e.g. 16MB. Default: the track's."),
    codec: str = typer.Option("", help="zstd, lzma, brotli, ans or best. Default: the recipe's."),
    overrides: list[str] = typer.Option([], "--set", help="quant.key=value, repeatable."),
    data: Path | None = typer.Option(None, help="Dataset folder. Default: the track's corpus."),
    author: str = typer.Option("", help="Name in the submission. Default: $SPEEDRUN_AUTHOR."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Round, compress and score the weights of a run; write a submission folder."""
    from speedrun.cli import pipeline
    from speedrun.data.corpus import open_corpus
    from speedrun.units import parse_size

    if codec:
        overrides = [*overrides, f'quant.codec="{codec}"']
    recipe, track = pipeline.read_folder(run, overrides)
    packed = pipeline.pack_run(
        recipe,
        track,
        open_corpus(data or track.corpus),
        run,
        pipeline.read_weights(run / "weights.safetensors"),
        out=out or run / "submission",
        cap_bytes=parse_size(cap) if cap else track.cap_bytes,
        author=author or pipeline.default_author(),
    )
    if as_json:
        print(
            json.dumps(
                {
                    "submission": str(packed.folder),
                    "bytes_model": packed.model_bytes,
                    "bytes_code": packed.code_bytes,
                    "bytes_total": packed.total_bytes,
                    "val_bpb": packed.score.bpb,
                }
            )
        )
        return
    print(
        f"{packed.folder}: model {packed.model_bytes:,} + code {packed.code_bytes:,} = "
        f"{packed.total_bytes:,} bytes, {packed.score.bpb:.4f} bpb"
    )
