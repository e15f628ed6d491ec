"""The report of a run, or of several laid over one another: one page that stands alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from speedrun.errors import ConfigError, FormatError
from speedrun.files import write_atomic
from speedrun.pack.report import PackReport, report_pack
from speedrun.pack.submission import MODEL_NAME
from speedrun.pages.bars import Part, bars, timeline, waterfall
from speedrun.pages.curves import loss_charts, run_charts, tokens_per_s, unlogged
from speedrun.pages.drawing import Chart
from speedrun.pages.evidence import Change, changes
from speedrun.pages.page import render
from speedrun.pages.runs import Run, read_run
from speedrun.pages.scales import say_bytes, say_count, say_seconds
from speedrun.settings import flatten

REPORT = "report.html"
_TENSORS = 24


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of these run folders to the file `out`.

    Raises
        ConfigError: a folder is no run folder, or none is named.
        OutputError: the file cannot be written.
    """
    if not folders:
        raise ConfigError("a report needs a run folder, or several")
    write_atomic(out, report_page([read_run(folder) for folder in folders]))


def report_page(runs: Sequence[Run]) -> bytes:
    """The page; with several runs, curves are laid over one another and recipes compared."""
    runs = _named_apart(runs)
    first, is_one = runs[0], len(runs) == 1
    packed = _packed(first) if is_one else None
    charts = [*loss_charts([run.course for run in runs]), *run_charts(runs)]
    if is_one:
        charts += _byte_charts(first, packed)
    return render(
        "report.html",
        runs=runs,
        first=first,
        charts=charts,
        tensors=sorted(packed.tensors, key=lambda each: -each.packed_bytes) if packed else [],
        changed=[(run, _changes(first, run)) for run in runs[1:]],
        unlogged=unlogged(runs),
        settings=flatten(first.recipe.to_dict()),
        tokens_per_s=tokens_per_s,
        say_seconds=say_seconds,
        say_count=say_count,
    )


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    """Courses named after recipe and seed, and after the folder where that is not enough."""
    names = [run.name for run in runs]
    return [
        dataclasses.replace(
            run,
            course=dataclasses.replace(
                run.course, name=run.name if names.count(run.name) == 1 else run.folder.name
            ),
        )
        for run in runs
    ]


def _changes(first: Run, other: Run) -> tuple[Change, ...]:
    return changes(first.recipe, other.recipe)


def _packed(run: Run) -> PackReport | None:
    """Bytes and rounding of each tensor; None where weights or their packed form are not there."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = run.folder / "submission" / MODEL_NAME
    try:
        weights = load_file(run.folder / "weights.safetensors")
        return report_pack(model.read_bytes(), weights)
    except (OSError, SafetensorError, FormatError, KeyError, RuntimeError):
        return None  # trained elsewhere, not packed yet, or packed from other weights


def _byte_charts(run: Run, packed: PackReport | None) -> list[Chart]:
    charts: list[Chart | None] = []
    code, model = (run.claims.get(f"bytes_{part}") for part in ("code", "model"))
    if isinstance(code, int) and isinstance(model, int):
        charts.append(
            waterfall(
                [Part(name="code", amount=code), *_model_parts(packed, model)],
                limit=run.cap_bytes,
                title="Bytes",
                description="What counts against the limit: code, then packed weights by kind.",
                say=say_bytes,
            )
        )
    if packed is not None:
        rounded = [tensor for tensor in packed.tensors if tensor.relative_error > 0]
        rounded.sort(key=lambda tensor: -tensor.relative_error)
        charts.append(
            bars(
                [(tensor.name, tensor.relative_error**0.5) for tensor in rounded[:_TENSORS]],
                title="What rounding costs",
                description="Root of squared rounding error over squared weights, by tensor, the "
                "dearest first.",
                head=("tensor", "relative error"),
                say=lambda share: f"{100 * share:.2f} %",
            )
        )
    charts.append(
        timeline(
            run.phases,
            title="The clock",
            description="Phases of the ledger. Coloured ones are on the budget.",
        )
    )
    return [chart for chart in charts if chart is not None]


def _model_parts(packed: PackReport | None, model_bytes: int) -> list[Part]:
    """Packed weights by the first words of their names; as one part if nothing is known."""
    if packed is None:
        return [Part(name="packed weights", amount=model_bytes)]
    sums: dict[str, float] = {}
    for tensor in packed.tensors:
        words = tensor.name.split(".")
        kind = f"{words[0]}.{words[2]}" if words[0] == "blocks" and len(words) > 2 else words[0]
        sums[kind] = sums.get(kind, 0.0) + tensor.packed_bytes
    largest = sorted(sums, key=lambda kind: -sums[kind])
    parts = [Part(name=kind, amount=sums[kind]) for kind in largest[:6]]
    rest = model_bytes - sum(part.amount for part in parts)
    return [*parts, Part(name="other, header", amount=rest)] if rest >= 1 else parts
