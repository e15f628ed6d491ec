"""`speedrun run`: choose the track, fill in the recipe, and run the pipeline once per seed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from speedrun.cli.pipeline import Finished
    from speedrun.config import RunConfig
    from speedrun.data.dataset import Dataset
    from speedrun.tracks.load import Track

Echo = Callable[[str], None]


def run(
    budget: str = typer.Option("", help="Training time, e.g. 60s or 10min. Default: the track's."),
    recipe: str = typer.Option("", help="Recipe name or .toml file. Default: the track's."),
    track: str = typer.Option("", help="Track name or .toml file. Default: the largest possible."),
    data: Path | None = typer.Option(None, help="Dataset folder. Default: the track's corpus."),
    seed: int = typer.Option(42, help="First seed."),
    seeds: int = typer.Option(1, min=1, help="Number of runs, with consecutive seeds."),
    overrides: list[str] = typer.Option([], "--set", help="section.key=value, repeatable."),
    out: Path = typer.Option(Path("runs"), help="Folder of the runs and their table."),
    resume: Path | None = typer.Option(None, help="Run folder to go on with."),
    author: str = typer.Option("", help="Name in the submission. Default: $SPEEDRUN_AUTHOR."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would run, and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train inside the budget, average, pack, verify and add the result to the runs table."""
    from speedrun.cli import pipeline
    from speedrun.data.corpus import open_corpus
    from speedrun.errors import ConfigError

    echo: Echo = (lambda line: print(line, file=sys.stderr)) if as_json else print
    if resume is not None:
        if recipe or overrides or budget or track:
            raise ConfigError("--resume goes on with the folder's own recipe, track and budget")
        first, chosen = pipeline.read_folder(resume)
    else:
        chosen = _choose_track(track, echo)
        first = _fill_in(recipe or chosen.recipe, overrides, chosen, budget, seed)
    if first.train.budget_s > chosen.train_seconds:
        echo(
            f"note: {first.train.budget_s:g} s is more than the {chosen.train_seconds:g} s of track "
            f"{chosen.name}; the judge will say so"
        )
    if dry_run:
        _print_plan(first, chosen, as_json)
        return
    dataset = open_corpus(data or chosen.corpus, echo=echo)
    finished = []
    for offset in range(seeds):
        each = dataclasses.replace(first, seed=first.seed + offset)
        folder = pipeline.prepare_folder(each, chosen, out, resume)
        echo(f"run folder: {folder}")
        with _progress(each.train.budget_s, quiet=as_json) as (say, on_step):
            finished.append(
                pipeline.run_once(
                    each,
                    chosen,
                    dataset,
                    folder,
                    echo=say,
                    on_step=on_step,
                    author=author or pipeline.default_author(),
                )
            )
        _print_result(finished[-1], chosen, dataset, as_json)
    if not as_json:
        _print_table(out, chosen)
    raise typer.Exit(max(each.verdict.exit_code for each in finished))


def _choose_track(name: str, echo: Echo) -> Track:
    """The named track, or the one with most GPUs whose GPUs and corpus are here."""
    from speedrun.data.corpus import open_corpus
    from speedrun.errors import DataError
    from speedrun.tracks.load import list_tracks, load_track

    if name:
        return load_track(name)
    reasons = []
    for track in sorted(list_tracks(), key=lambda each: (-each.num_gpus, each.train_seconds)):
        if track.num_gpus and track.num_gpus > _visible_gpus():
            reasons.append(f"{track.name} needs {track.num_gpus} GPUs, {_visible_gpus()} visible")
            continue
        if track.num_gpus:
            try:
                open_corpus(track.corpus)
            except DataError as error:
                reasons.append(f"{track.name}: {error}")
                continue
        echo(f"track: {track.name} ({'; '.join(reasons) or 'all that it needs is here'})")
        return track
    return load_track("pocket")


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _fill_in(recipe: str, overrides: list[str], track: Track, budget: str, seed: int) -> RunConfig:
    from speedrun.recipes.load import load_recipe
    from speedrun.units import parse_duration

    run = load_recipe(recipe, overrides)
    seconds = parse_duration(budget) if budget else run.train.budget_s or track.train_seconds
    has_seed = any(text.replace(" ", "").startswith("seed=") for text in overrides)
    return dataclasses.replace(
        run,
        seed=run.seed if has_seed else seed,
        train=dataclasses.replace(run.train, budget_s=seconds),
    )


def _print_plan(run: RunConfig, track: Track, as_json: bool) -> None:
    from speedrun.cli.plan import plan_run

    plan = plan_run(run, track)
    if as_json:
        print(json.dumps(plan, indent=2))
        return
    for key, value in plan.items():
        print(f"{key.replace('_', ' '):<28} {f'{value:,}' if isinstance(value, int) else value}")


@contextmanager
def _progress(
    budget_s: float, *, quiet: bool
) -> Iterator[tuple[Echo, Callable[[float, float, float], None]]]:
    """On a terminal a bar with time and loss; elsewhere plain lines."""
    if not sys.stdout.isatty():
        echo: Echo = (lambda line: print(line, file=sys.stderr)) if quiet else _print_now
        yield echo, lambda progress, elapsed_s, nats: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    # Two frames a second: drawing more often costs a two-core machine a share of its training.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.0f} s  loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        refresh_per_second=2,
    ) as bar:
        task = bar.add_task("training", total=budget_s, loss="-", start=False)

        def on_step(progress: float, elapsed_s: float, nats: float) -> None:
            bar.start_task(task)
            bar.update(task, completed=elapsed_s, loss=f"{nats:.4f}")

        def say(line: str) -> None:
            if not line.startswith("step:"):
                bar.console.print(line, markup=False, highlight=False)

        yield say, on_step


def _print_now(line: str) -> None:
    print(line, flush=True)


def _print_result(done: Finished, track: Track, dataset: Dataset, as_json: bool) -> None:
    from rich.console import Console

    from speedrun.verify.verdict import print_verdict

    if as_json:
        print(
            json.dumps(
                {
                    "folder": str(done.folder),
                    "recipe": done.run.name,
                    "track": track.name,
                    "seed": done.run.seed,
                    "steps": done.trained.steps,
                    "train_seconds": done.trained.seconds,
                    "val_bpb": done.packed.score.bpb,
                    "val_loss": done.packed.score.nats_per_token,
                    "bytes_total": done.packed.total_bytes,
                    "cap_bytes": track.cap_bytes,
                    "corpus": dataset.name,
                    "verdict": done.verdict.to_dict(),
                }
            )
        )
        return
    print_verdict(done.verdict, Console())
    print(f"submission: {done.packed.folder}")


def _print_table(out: Path, track: Track) -> None:
    from rich.console import Console

    from speedrun.records.runs import read_runs
    from speedrun.records.table import runs_table

    rows = [row for row in read_runs(out) if row.track == track.name]
    Console().print(runs_table(rows[-10:]))
