"""A run on a terminal: two budgets as bars, the loss as a line of blocks, and what it says last."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from speedrun.pages.curves import tokens_per_s
from speedrun.pages.page import tidy
from speedrun.pages.runs import Run

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARKS = 48
_LINES = 4
SILENT_S = 60.0
"""Seconds without a measurement after which a run may have stopped."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes that a run's submission has or will have, and who says so."""

    num_bytes: int
    source: str


def dashboard(run: Run, size: Size | None, *, now: float | None = None) -> RenderableType:
    """One picture of a run; `now` is the time of day, for what happens between measurements.

    Whatever the folder says is put in as tidy text: neither markup nor control codes get through.
    """
    spent_s = _spent(run, now)
    head = Text()
    head.append(tidy(run.recipe.name), style="bold")
    head.append(f"  seed {run.recipe.seed}  {tidy(run.track.name) if run.track else ''}  ")
    head.append(tidy(_state(run, now)), style="bold")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", min_width=8)
    grid.add_column(width=32)
    grid.add_column(overflow="fold")
    grid.add_row("time", _bar(spent_s, run.budget_s), _of(spent_s, run.budget_s, "{:,.1f}", "s"))
    if size is not None:
        cap = float(run.cap_bytes or 0)
        said = Text.assemble(
            _of(size.num_bytes, cap, "{:,.0f}", "bytes"), (f"  {size.source}", "dim")
        )
        grid.add_row("bytes", _bar(size.num_bytes, cap), said)
    else:
        grid.add_row("bytes", Text("-"), Text("no forecast yet", style="dim"))
    if losses := [nats for _, nats in run.course.train_nats]:
        grid.add_row("loss", Text(sparkline(losses)), Text(f"{losses[-1]:.4f} nats per token"))
    if looks := run.course.val_bpb:
        grid.add_row("look", Text(""), Text(f"{looks[-1][1]:.4f} bpb at step {looks[-1][0]:,.0f}"))
    pace = tokens_per_s(run)
    said = Text(f"{run.num_steps:,} steps")
    if pace:
        said.append(f", {pace:,.0f} tokens/s")
    grid.add_row("pace", Text(""), said)
    if run.val_bpb is not None:
        grid.add_row("score", Text(""), Text(f"{run.val_bpb:.4f} bpb, packed", style="bold"))
    last = [Text(tidy(line[:200]), style="dim", no_wrap=True) for line in run.log[-_LINES:]]
    troubles = [Text(f"left out: {tidy(message)}", style="yellow") for message in run.damaged]
    return Group(head, Text(), grid, Text(), *last, *troubles)


def sparkline(values: list[float], width: int = _SPARKS) -> str:
    """Blocks whose heights follow the values; of many, means of neighbours."""
    if len(values) > width:
        edges = [round(place * len(values) / width) for place in range(width + 1)]
        parts = [values[a:b] for a, b in itertools.pairwise(edges)]
        values = [sum(part) / len(part) for part in parts]
    low, high = min(values), max(values)
    step = (high - low) / (len(_BLOCKS) - 1) or 1.0
    return "".join(_BLOCKS[round((value - low) / step)] for value in values)


def _spent(run: Run, now: float | None) -> float:
    """Budgeted seconds: between two measurements of a run in training, the clock on the wall."""
    moment = run.course.last_moment
    if now is None or moment is None or run.state != "training":
        return run.spent_s
    return min(run.spent_s + min(max(now - moment, 0.0), SILENT_S), run.budget_s)


def _state(run: Run, now: float | None) -> str:
    moment = run.course.last_moment
    if run.state == "finished" and run.judgement is not None:
        return run.judgement.status
    if now is not None and moment is not None and run.state == "training":
        silent_s = now - moment
        if silent_s > SILENT_S:
            return f"silent for {silent_s:,.0f} s"
    return run.state


def _bar(done: float, of: float) -> ProgressBar:
    style = "red" if of and done > of else "green"
    return ProgressBar(
        total=of or 1.0, completed=min(done, of), complete_style=style, finished_style=style
    )


def _of(done: float, of: float, form: str, unit: str) -> Text:
    limit = f" of {form.format(of).removesuffix('.0')}" if of else ""
    return Text(f"{form.format(done)}{limit} {unit}")
