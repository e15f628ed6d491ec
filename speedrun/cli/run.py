"""`speedrun run`: choose the track, fill in the recipe, and run the pipeline once per seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speedrun.cli.screen import open_screen, print_runs, say, say_aside

if TYPE_CHECKING:
    from speedrun.cli.pipeline import Finished
    from speedrun.config import RunConfig
    from speedrun.tracks.load import Track


def run(
    budget: str = typer.Option(
        "", metavar="TIME", help="Training time, e.g. 60s or 10min. Default: the track's."
    ),
    recipe: str = typer.Option(
        "", metavar="NAME|FILE", help="Recipe name or .toml file. Default: the track's."
    ),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: the largest possible."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    seed: int | None = typer.Option(
        None, metavar="N", help="First seed. Default: the recipe's, 42."
    ),
    seeds: int = typer.Option(
        1,
        metavar="N",
        min=1,
        show_default=False,
        help="Number of runs, seeds in a row. Default: 1.",
    ),
    overrides: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="section.key=value, repeatable."
    ),
    out: Path = typer.Option(
        Path("runs"), metavar="FOLDER", help="Folder of the runs and their table."
    ),
    resume: Path | None = typer.Option(None, metavar="FOLDER", help="Run folder to go on with."),
    author: str = typer.Option(
        "", metavar="NAME", help="Name in the submission. Default: $SPEEDRUN_AUTHOR."
    ),
    nproc: int | None = typer.Option(
        None, metavar="N", min=1, help="Processes on this machine. Default: one per GPU, or one."
    ),
    nnodes: int = typer.Option(
        1, metavar="N", min=1, show_default=False, help="Machines. Default: 1."
    ),
    rdzv: str = typer.Option(
        "", metavar="HOST:PORT", help="Where several machines meet, the same on all of them."
    ),
    allow_overlap: bool = typer.Option(
        False, "--allow-overlap", help="Train even if validation text is in training."
    ),
    samples: int = typer.Option(
        3, metavar="N", min=0, max=20, help="Continuations in report.html; 0 writes none."
    ),
    log_to: list[str] = typer.Option(
        [], metavar="NAME", help="tensorboard, wandb or trackio, too; repeatable."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would run, and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON, one line for each run."),
) -> None:
    """Train inside the budget, pack, verify, and add the result to the runs table.

    No option is needed. Ctrl-C saves a checkpoint; `--resume` goes on from it. However many
    processes train, the batch and the schedule are the recipe's.
    """
    from speedrun.errors import ConfigError

    echo = say_aside if as_json else say
    if resume is None:
        chosen = _choose_track(track, echo)
        first = _fill_in(recipe or chosen.recipe, overrides, chosen, budget, seed)
    elif recipe or overrides or budget or track or seed is not None or seeds > 1:
        raise ConfigError("--resume goes on with the folder's own recipe, track, budget and seed")
    else:
        first, chosen = _read_unfinished(resume)
    if first.train.budget_s > chosen.train_seconds:
        echo(
            f"note: {first.train.budget_s:g} s is more than the {chosen.train_seconds:g} s of "
            f"track {chosen.name}; the judge will say so"
        )
    if dry_run:
        _print_plan(first, chosen, as_json, nproc)
        return
    from speedrun.cli import pipeline
    from speedrun.cli.company import form_company, train_together
    from speedrun.cli.folder import new_folder
    from speedrun.cli.overlap import check_overlap
    from speedrun.cli.trackers import check_trackers
    from speedrun.data.corpus import open_corpus

    check_trackers(log_to)
    dataset = open_corpus(data or chosen.corpus, echo=echo)
    overlap = check_overlap(dataset, allow=allow_overlap, echo=echo)
    company = form_company(nproc, nnodes, rdzv)
    exit_code = 0
    for offset in range(seeds):
        each = dataclasses.replace(first, seed=first.seed + offset)
        with nullcontext(resume) if resume else new_folder(each, chosen, out) as folder:
            echo(f"run folder: {folder}")
            if not company.is_alone and not train_together(
                each, dataset, folder, company, overlap=overlap, as_json=as_json, log_to=log_to
            ):
                echo("trained: the machine of rank 0 packs and judges")
                continue
            with open_screen(each.train.budget_s, as_json=as_json) as screen:
                done = pipeline.run_once(
                    each,
                    chosen,
                    dataset,
                    folder,
                    screen,
                    author=author,
                    overlap=overlap,
                    samples=samples,
                    log_to=log_to,
                )
        _print_finished(done, chosen, as_json=as_json)
        exit_code = max(exit_code, done.verdict.exit_code)
    if not as_json:
        print_runs(folder.parent, track=chosen.name, last=10)
    raise typer.Exit(exit_code)


def _choose_track(name: str, echo: Callable[[str], None]) -> Track:
    """The named track, or the one with most GPUs whose GPUs and corpus are here."""
    from speedrun.tracks.load import list_tracks, load_track

    if name:
        return load_track(name)
    reasons: list[str] = []
    for track in sorted(list_tracks(), key=lambda each: (-each.num_gpus, each.train_seconds)):
        if not (obstacle := _obstacle(track)):
            echo(f"track: {track.name} ({'; '.join(reasons) or 'all that it needs is here'})")
            return track
        reasons.append(f"{track.name} {obstacle}")
    return load_track("pocket")


def _obstacle(track: Track) -> str:
    """What a track needs that is not here, or nothing."""
    from speedrun.corpora.load import load_corpus
    from speedrun.data.corpus import open_corpus
    from speedrun.errors import DataError

    if track.num_gpus:
        import torch

        if (visible := torch.cuda.device_count()) < track.num_gpus:
            return f"needs {track.num_gpus} GPUs, {visible} visible"
    # A corpus that is built here is never missing, and building it just to look takes a minute.
    if load_corpus(track.corpus).kind != "stdlib":
        try:
            open_corpus(track.corpus)
        except DataError as error:
            return f"needs its corpus: {error}"
    return ""


def _fill_in(
    recipe: str, overrides: list[str], track: Track, budget: str, seed: int | None
) -> RunConfig:
    from speedrun.recipes.load import load_recipe
    from speedrun.units import parse_duration

    run = load_recipe(recipe, overrides)
    seconds = parse_duration(budget) if budget else run.train.budget_s or track.train_seconds
    return dataclasses.replace(
        run,
        seed=run.seed if seed is None else seed,
        train=dataclasses.replace(run.train, budget_s=seconds),
    )


def _read_unfinished(folder: Path) -> tuple[RunConfig, Track]:
    from speedrun.cli.folder import read_folder
    from speedrun.errors import ConfigError

    if (folder / "verdict.json").exists():
        raise ConfigError(
            f"{folder} is finished; `speedrun pack` packs it again, `speedrun verify` judges it"
        )
    return read_folder(folder)


def _print_plan(run: RunConfig, track: Track, as_json: bool, num_processes: int | None) -> None:
    from speedrun.cli.plan import plan_run

    plan = plan_run(run, track, num_processes)
    if as_json:
        print(json.dumps(plan, indent=2))
        return
    for key, value in plan.items():
        print(f"{key.replace('_', ' '):<28} {f'{value:,}' if isinstance(value, int) else value}")


def _print_finished(done: Finished, track: Track, *, as_json: bool) -> None:
    """The verdict, and where the submission is; as JSON one line for each run."""
    if as_json:
        facts = {
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
            "verdict": done.verdict.to_dict(),
        }
        print(json.dumps(facts), flush=True)
        return
    from rich.console import Console

    from speedrun.verify.verdict import print_verdict

    print_verdict(done.verdict, Console())
    say(f"submission: {done.packed.folder}")
