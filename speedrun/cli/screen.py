"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, tables at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def say(line: str) -> None:
    """A line for people; seen at once, in a pipe too."""
    print(line, flush=True)


def say_aside(line: str) -> None:
    """The same where stdout belongs to JSON."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where a run tells how far it is."""

    say: Callable[[str], None]
    on_step: Callable[[float, float, float], None] = lambda progress, elapsed_s, nats: None
    on_scored: Callable[[str, int, int], None] | None = None
    """Called by the judge with what it scores, targets done, targets in all."""


@contextmanager
def open_screen(budget_s: float, *, as_json: bool) -> Iterator[Screen]:
    """On a terminal a bar with time and loss; elsewhere plain lines."""
    if as_json or not sys.stdout.isatty():
        yield Screen(say=say_aside if as_json else say)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    # Two frames a second: drawing more often costs a two-core machine a share of its training.
    with Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        refresh_per_second=2,
    ) as bar:
        training = bar.add_task("warm-up", total=budget_s, state="", start=False)
        judging = bar.add_task("judging", total=None, state="", visible=False)

        def on_step(progress: float, elapsed_s: float, nats: float) -> None:
            bar.start_task(training)
            state = f"{elapsed_s:.1f} of {budget_s:g} s  loss {nats:.4f}"
            bar.update(training, description="training", completed=elapsed_s, state=state)

        def on_scored(what: str, done: int, total: int) -> None:
            state = f"{what}: {done:,} of {total:,} tokens"
            bar.update(judging, visible=True, completed=done, total=total, state=state)

        def say_above(line: str) -> None:
            if " train_loss:" not in line:  # the bar shows it, and the log has every line
                bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield Screen(say=say_above, on_step=on_step, on_scored=on_scored)


@contextmanager
def open_bar() -> Iterator[Callable[[str, int, int], None]]:
    """On a terminal a bar (on stderr) of what is being done; elsewhere a line at each tenth of it.

    Gives a function of the name, how much is done, and of how much.
    """
    if not sys.stderr.isatty():
        told: dict[str, int] = {}

        def tell(what: str, done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if tenth > told.get(what, 0):
                told[what] = tenth
                say_aside(f"{what}: {10 * tenth} % of {total:,}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), refresh_per_second=2) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=max(total, 1))

        yield show


def print_runs(out: Path, *, track: str = "", last: int | None = None) -> None:
    """The table of runs in `out`, one for each track, or for the one that is named."""
    from rich.console import Console

    from speedrun.records.runs import read_runs
    from speedrun.records.table import runs_table

    rows = read_runs(out)
    if not rows:
        say(f"no runs in {out} yet; `speedrun run` makes the first")
    for name in [track] if track else sorted({row.track for row in rows}):
        mine = [row for row in rows if row.track == name]
        Console().print(runs_table(mine[-last:] if last else mine, title=name))
