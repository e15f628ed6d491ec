"""`speedrun pack`: pack a finished run again, with another number of bits or codec."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import typer

PACKING_SECTIONS = ("quant.", "evaluation.")
"""What may still change after training."""


def pack(
    run: Path = typer.Argument(
        metavar="RUN|PREDICTOR.py",
        help="Run folder, trained to the end; or a module with load(arrays), see "
        "submissions/template.",
    ),
    arrays: Path | None = typer.Option(
        None, metavar="FILE", help="Of a predictor: arrays that load gets, .npz or .safetensors."
    ),
    ledger: Path | None = typer.Option(
        None, metavar="FILE", help="Of a predictor: the ledger.jsonl of its training."
    ),
    track: str = typer.Option(
        "pocket", metavar="NAME|FILE", help="Of a predictor: the track it is for."
    ),
    seed: int = typer.Option(42, help="Of a predictor: the seed it was trained with."),
    out: Path | None = typer.Option(
        None, metavar="FOLDER", help="Submission folder. Default: RUN/submission."
    ),
    cap: str = typer.Option(
        "", metavar="SIZE", help="Largest total size, e.g. 16MB. Default: the track's."
    ),
    codec: str = typer.Option(
        "", metavar="NAME", help="zstd, lzma, brotli, ans or best. Default: the recipe's."
    ),
    overrides: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="quant.key=value or evaluation.key=value, repeatable.",
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    author: str = typer.Option(
        "", metavar="NAME", help="Name in the submission. Default: $SPEEDRUN_AUTHOR."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Pack the weights of a run, or a predictor of your own; write a submission folder."""
    if run.suffix == ".py":
        from speedrun.cli.predictor import pack_own

        pack_own(
            run, arrays, ledger, track, seed, out, cap, codec, overrides, data, author, as_json
        )
        return
    from speedrun.cli.folder import read_folder, read_trained
    from speedrun.cli.packing import pack_run
    from speedrun.data.corpus import open_corpus
    from speedrun.errors import ConfigError, DataError
    from speedrun.train.log import RunLog
    from speedrun.units import parse_size

    for text in overrides:
        if not text.lstrip().startswith(PACKING_SECTIONS):
            raise ConfigError(
                f"--set {text}: the run is trained; only quant.* and evaluation.* can change"
            )
    if codec:
        overrides = [*overrides, f'quant.codec="{codec}"']
    recipe, limits = read_folder(run, overrides)
    cap_bytes = parse_size(cap) if cap else limits.cap_bytes
    if (trained := read_trained(run)) is None:
        raise DataError(f"{run} is not trained to the end: speedrun run --resume {run}")
    # The submission's log tells of its own packing; the run's log stays what it was.
    with tempfile.TemporaryDirectory(prefix="speedrun-pack-") as place:
        shutil.copyfile(run / "train.log", Path(place) / "train.log")
        packed = pack_run(
            recipe,
            limits,
            open_corpus(data or limits.corpus),
            run,
            trained,
            out=out or run / "submission",
            cap_bytes=cap_bytes,
            author=author,
            log=RunLog(Path(place)),
        )
    if as_json:
        facts = {
            "submission": str(packed.folder),
            "bytes_model": packed.model_bytes,
            "bytes_code": packed.code_bytes,
            "bytes_total": packed.total_bytes,
            "cap_bytes": cap_bytes,
            "val_bpb": packed.score.bpb,
        }
        print(json.dumps(facts, indent=2))
        return
    print(
        f"{packed.folder}: model {packed.model_bytes:,} + code {packed.code_bytes:,} = "
        f"{packed.total_bytes:,} bytes, {packed.score.bpb:.4f} bpb"
    )
