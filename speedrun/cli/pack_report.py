"""Where the bytes and the loss of a packed network went: a table, and a page with a picture."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from speedrun.cli.sweep import score_part
from speedrun.config import RunConfig
from speedrun.data.dataset import Dataset
from speedrun.files import write_atomic
from speedrun.pack.bundle import ModuleSize
from speedrun.pack.report import PackReport, TensorReport
from speedrun.pack.weights import unpack_weights

_BAR = 320  # pixels of the longest bar
_ROW = 18


def measure_costs(
    run: RunConfig,
    weights: dict[str, Tensor],
    packed: bytes,
    dataset: Dataset,
    *,
    tokens: int,
    echo: Callable[[str], None] = lambda line: None,
) -> tuple[float, dict[str, float]]:
    """Score without rounding, and what each tensor adds to it when it alone is rounded.

    On the first `tokens` validation tokens. Small costs are of either sign: a random push on a
    network that is not at its optimum helps as often as it hurts.
    """
    exact = score_part(run, weights, dataset, tokens)
    costs = {}
    for name, rounded in unpack_weights(packed)[1].items():
        if not rounded.is_floating_point():
            continue
        costs[name] = score_part(run, weights | {name: rounded}, dataset, tokens) - exact
        echo(f"{name:<36} {costs[name]:+.6f} bpb")
    return exact, costs


def module_lines(sizes: Sequence[ModuleSize], total: int) -> list[str]:
    """Bytes of the code by module, as a table."""
    lines = [f"{'module':<32} {'source':>9} {'minified':>9} {'packed':>8}"]
    lines += [
        f"{size.name:<32} {size.source_bytes:>9,} {size.minified_bytes:>9,} {size.packed_bytes:>8,}"
        for size in sizes
    ]
    shares = sum(size.packed_bytes for size in sizes)
    shared = f"shared words, loader and zip {total - shares:,}"
    return [*lines, f"{'train_gpt.py':<32} {'':>9} {'':>9} {total:>8,}  ({shared})"]


def tensor_lines(report: PackReport, costs: dict[str, float] | None = None) -> list[str]:
    """Bytes of the weights by tensor, as a table; largest first."""
    head = f"{'tensor':<34} {'bits':>4} {'clip':>8} {'codec':>6} {'weights':>10} {'bytes':>10} "
    lines = [head + f"{'bits/w':>7} {'entropy':>7} {'error':>8} {'loss nats':>9}   bpb alone"]
    for tensor in sorted(report.tensors, key=lambda each: -each.packed_bytes):
        count = max(tensor.num_weights, 1)
        cost = "" if costs is None or tensor.name not in costs else f"{costs[tensor.name]:+.6f}"
        lines.append(
            f"{tensor.name:<34} {tensor.bits:>4} {tensor.clip:>8.4f} {tensor.codec:>6} "
            f"{tensor.num_weights:>10,} {tensor.packed_bytes:>10,.0f} "
            f"{8 * tensor.packed_bytes / count:>7.3f} {8 * tensor.entropy_bytes / count:>7.3f} "
            f"{tensor.relative_error:>8.1e} {tensor.loss:>9.2e}   {cost}"
        )
    lines.append(
        f"{'header and digest':<34} {'':>4} {'':>8} {'':>6} {'':>10} {report.overhead_bytes:>10,}"
    )
    return [
        *lines,
        f"{'model.srz':<34} {'':>4} {'':>8} {'':>6} {'':>10} {report.file_bytes:>10,}  "
        f"{report.over_entropy:.4f} of the order-0 entropy",
    ]


def write_page(
    path: Path, title: str, report: PackReport, lines: Sequence[str], costs: dict[str, float]
) -> None:
    """Write a page that stands alone: two bars for each tensor, and the tables below.

    Raises
        OutputError: the file cannot be written.
    """
    tensors = sorted(report.tensors, key=lambda each: -each.packed_bytes)
    text = "\n".join(html.escape(line) for line in lines)
    page = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font:14px sans-serif;margin:2em}pre{font-size:12px}</style>"
        f"<h1>{html.escape(title)}</h1>{picture(tensors, costs)}<pre>{text}</pre>\n"
    )
    write_atomic(path, page.encode())


def picture(tensors: Sequence[TensorReport], costs: dict[str, float]) -> str:
    """Bars as SVG: bytes on the left, measured bpb on the right (red where it got worse)."""
    most_bytes = max((tensor.packed_bytes for tensor in tensors), default=1.0) or 1.0
    most_cost = max((abs(cost) for cost in costs.values()), default=0.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{320 + 2 * _BAR}" '
        f'height="{_ROW * (len(tensors) + 1)}" font-size="11" font-family="sans-serif">'
        f'<text x="240" y="12">bytes</text><text x="{300 + _BAR}" y="12">bpb alone</text>'
    ]
    for row, tensor in enumerate(tensors, start=1):
        y, cost = row * _ROW, costs.get(tensor.name, 0.0)
        width = _BAR * tensor.packed_bytes / most_bytes
        loss = _BAR * abs(cost) / most_cost
        parts.append(
            f'<text x="0" y="{y + 12}">{html.escape(tensor.name)}</text>'
            f'<rect x="240" y="{y + 2}" width="{width:.1f}" height="12" fill="#48a"/>'
            f'<rect x="{300 + _BAR}" y="{y + 2}" width="{loss:.1f}" height="12" '
            f'fill="{"#c33" if cost > 0 else "#3a3"}"><title>{cost:+.6f}</title></rect>'
        )
    return "".join(parts) + "</svg>"
