"""`speedrun pack`: pack a finished run again, see where its bytes are, or try many sizes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from speedrun.cli.packing import Packed
    from speedrun.config import RunConfig
    from speedrun.data.dataset import Dataset
    from speedrun.train.loop import Trained

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
    explain: bool = typer.Option(False, help="Show bytes by module and by tensor."),
    report: bool = typer.Option(
        False, help="Measure each tensor's cost too; writes RUN/pack-report.html."
    ),
    sweep: str = typer.Option(
        "", metavar="SIZES", help="Score at several caps instead, e.g. 8MB,12MB,16MB."
    ),
    tokens: int = typer.Option(
        16_384, metavar="N", help="Validation tokens for --report and --sweep."
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
    dataset = open_corpus(data or limits.corpus)
    if sweep:
        caps = [parse_size(size) for size in sweep.split(",")]
        _sweep(recipe, run, trained, dataset, caps, tokens, as_json)
        return
    # The submission's log tells of its own packing; the run's log stays what it was.
    with tempfile.TemporaryDirectory(prefix="speedrun-pack-") as place:
        shutil.copyfile(run / "train.log", Path(place) / "train.log")
        packed = pack_run(
            recipe,
            limits,
            dataset,
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
    if explain or report:
        _explain(recipe, run, trained, dataset, packed, tokens if report else 0)


def _explain(
    recipe: RunConfig, run: Path, trained: Trained, dataset: Dataset, packed: Packed, tokens: int
) -> None:
    """Print what every module and tensor weighs; with `tokens`, measure and draw it as well."""
    from speedrun.cli.calibration import calibration_of
    from speedrun.cli.pack_report import measure_costs, module_lines, tensor_lines, write_page
    from speedrun.pack.bundle import TWIN_NAME, compare_twin, module_sizes
    from speedrun.pack.report import report_pack
    from speedrun.pack.submission import CODE_NAME, MODEL_NAME

    code = (packed.folder / CODE_NAME).read_bytes()
    weights = (packed.folder / MODEL_NAME).read_bytes()
    different = compare_twin((run / TWIN_NAME).read_text("utf-8"), code)
    lines = module_lines(module_sizes(recipe), packed.code_bytes)
    lines += [different or f"{TWIN_NAME} gives these very bytes", ""]
    calibration = calibration_of(run, recipe, trained, dataset)
    found = report_pack(weights, trained.weights, calibration)
    costs: dict[str, float] = {}
    if tokens:
        exact, costs = measure_costs(
            recipe, trained.weights, weights, dataset, tokens=tokens, echo=print
        )
        lines.append(f"without rounding {exact:.6f} bpb on {tokens:,} validation tokens")
    lines += tensor_lines(found, costs)
    print("\n".join(lines))
    if tokens:
        page = run / "pack-report.html"
        title = f"{recipe.name}, {packed.total_bytes:,} bytes"
        write_page(page, title, found, lines, costs)
        print(page)


def _sweep(
    recipe: RunConfig,
    run: Path,
    trained: Trained,
    dataset: Dataset,
    caps: list[int],
    tokens: int,
    as_json: bool,
) -> None:
    """Fit to each cap, score, print a line for each, and keep them in RUN/pack-sweep.json."""
    from speedrun.cli.calibration import calibration_of
    from speedrun.cli.sweep import sweep, write_points
    from speedrun.pack.bundle import build_bundle

    # A sweep is about sizes: only `fit` knows any.
    quant = dataclasses.replace(recipe.quant, method="fit")
    recipe = dataclasses.replace(recipe, quant=quant)
    if not as_json:
        print(f"{'cap':>13}  {'bytes':>13}  bits/w  bpb of {tokens:,} validation tokens")
    points = sweep(
        recipe,
        trained.weights,
        calibration_of(run, recipe, trained, dataset),
        dataset,
        caps=caps,
        code_bytes=len(build_bundle(recipe, cap_bytes=max(caps))),
        tokens=tokens,
        echo=(lambda line: None) if as_json else print,
    )
    write_points(run / "pack-sweep.json", points)
    if as_json:
        print(json.dumps([dataclasses.asdict(point) for point in points], indent=2))
