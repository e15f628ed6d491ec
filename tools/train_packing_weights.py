"""Train the weights that packing is measured on, as run folders that `speedrun pack` takes.

    python tools/train_packing_weights.py plain|pocket|golf --out FOLDER [--budget 60s] [--resume]

    pocket  pocket/default, as it is
    plain   a transformer of 1.5 M parameters without tables: rounding has nothing to hide behind
    golf    golf/partial-rope, 26.8 M parameters, with batches that a processor can take: 1,024
            tokens a step in sequences of 256, and an average that forgets after 20 steps

Text: `../shared/data/technical-english.jsonl.zst`, tokenised with the contest's sp1024, the first 8
documents by SHA-256 of their id held out (a subset of what tools/bench_pocket.py holds out), which
keeps each of the many scores of a packing benchmark short.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from speedrun.cli.folder import new_folder, note_environment, read_folder, write_trained
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.data.corpus import cache_folder
from speedrun.data.dataset import Dataset, open_dataset
from speedrun.data.prepare import prepare_dataset, read_jsonl
from speedrun.data.tokenizer import Tokenizer
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe
from speedrun.tracks.load import load_track
from speedrun.train.checkpoint import Checkpoints
from speedrun.train.log import RunLog
from speedrun.train.loop import train
from speedrun.units import parse_duration

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
VALIDATION_DOCUMENTS = 8

SETTINGS = {
    "pocket": ("pocket/default", ()),
    "plain": (
        "golf/baseline",
        (
            "model.width=192",
            "model.num_layers=4",
            "model.num_heads=4",
            "model.num_kv_heads=2",
            "model.mlp_hidden=576",
            "data.sequence_length=512",
            "data.tokens_per_step=2048",
            "data.micro_batch_tokens=2048",
            'data.order="shuffled"',
            "schedule.warmdown_frac=0.5",
            "train.warmup_steps=2",
            "quant.matrix_bits=6",
            "quant.small_tensor_limit=8192",
            "evaluation.context=512",
            "evaluation.stride=512",
        ),
    ),
    "golf": (
        "golf/partial-rope",
        (
            "data.sequence_length=256",
            "data.tokens_per_step=1024",
            "data.micro_batch_tokens=1024",
            'data.order="shuffled"',
            # Lower rates than the recipe's, which are for batches 768 times as large; and three
            # iterations of Newton-Schulz, which otherwise takes longer than the gradients.
            "optim.matrix_lr=0.015",
            "optim.embedding_lr=0.01",
            "optim.scalar_lr=0.01",
            "optim.newton_schulz_steps=3",
            "optim.muon_momentum=0.95",
            "optim.muon_momentum_start=0.85",
            "average.ema_decay=0.95",
            "average.start_frac=0.5",
            "schedule.warmdown_frac=0.5",
            "train.warmup_steps=1",
            "train.validate_every_s=0.0",
            "train.log_every_steps=10",
            "train.checkpoint_every_s=300.0",
            # Compiling so large a graph costs more than it saves on so few steps.
            'train.compile="no"',
            "evaluation.context=512",
            "evaluation.stride=512",
        ),
    ),
}


def prepare() -> Dataset:
    """The dataset of all packing benchmarks, built in the cache once."""
    folder = cache_folder() / "bench-packing"
    if folder.exists():
        return open_dataset(folder)
    text = SHARED / "technical-english.jsonl.zst"
    if not text.exists():
        sys.exit(f"{text} is not here: these weights need the shared data folder")
    tokenizer = Tokenizer.load(SHARED / "tokenizers" / "fineweb_1024_bpe.model")
    print(f"preparing {text.name} (half a minute, once)", file=sys.stderr)
    return prepare_dataset(
        read_jsonl(text),
        tokenizer,
        folder,
        name="bench-packing",
        validation_count=VALIDATION_DOCUMENTS,
    )


def train_in(folder: Path, run: RunConfig, dataset: Dataset) -> None:
    """Train to the end of the budget, from the folder's checkpoint if it has one."""
    note_environment(folder, dataset)
    trained = train(
        run,
        open_batches(dataset.train_shards, run),
        Clock(run.train.budget_s, Ledger(folder / "ledger.jsonl")),
        Ranks.from_environment(),
        RunLog(folder, lambda line: print(line, flush=True)),
        checkpoints=Checkpoints(folder, run),
    )
    write_trained(folder, trained)
    print(f"{folder}: {trained.steps:,} steps in {trained.seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=sorted(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--resume", type=Path, help="a folder that this began and did not end")
    arguments = parser.parse_args()
    if arguments.resume:
        train_in(arguments.resume, read_folder(arguments.resume)[0], prepare())
        return
    recipe, overrides = SETTINGS[arguments.which]
    run = load_recipe(recipe, [*overrides, *arguments.overrides])
    timed = dataclasses.replace(run.train, budget_s=parse_duration(arguments.budget))
    run = dataclasses.replace(run, seed=arguments.seed, train=timed)
    track = "golf-10min-16mb" if arguments.which == "golf" else "pocket"
    with new_folder(run, load_track(track), arguments.out) as folder:
        train_in(folder, run, prepare())


if __name__ == "__main__":
    main()
