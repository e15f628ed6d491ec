"""Run short trainings again and again and read their ledgers: no training second over the budget.

    python tools/check_budget.py [--runs 10] [--budget 20s]     whole runs of the program
    python tools/check_budget.py --short 100                    training only, with stalls

Short runs have budgets of 1 to 5 s, half of them one rank and half two, and stand still at random
moments, on random ranks, in steps and between them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speedrun.clock import Ledger
from speedrun.units import parse_duration

ROOT = Path(__file__).parents[1]
STALLS_PER_RUN = 1.5
"""On average, over all ranks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budget", default="20s")
    parser.add_argument("--recipe", default="pocket/default")
    parser.add_argument("--short", type=int, default=0, metavar="N", help="short runs instead")
    parser.add_argument("--seed", type=int, default=1, help="of budgets and stalls")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)  # a rank of short runs: its folder
    arguments = parser.parse_args()
    if arguments.rank_of:
        run_short_ones(Path(arguments.rank_of), arguments.short, arguments.seed)
    elif arguments.short:
        sys.exit(check_short_ones(arguments.short, arguments.seed))
    else:
        sys.exit(check_whole_ones(arguments))


def check_whole_ones(arguments: argparse.Namespace) -> bool:
    """Whether one of them was over its budget."""
    limit_s = parse_duration(arguments.budget)
    spent = []
    for seed in range(arguments.runs):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "speedrun", "run", "--track", "pocket", "--out", out]
            command += ["--budget", arguments.budget, "--seed", str(seed)]
            command += ["--recipe", arguments.recipe]
            # Scoring is not what is checked here: chunks are quick.
            command += ["--set", "evaluation.stride=8192"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            ledgers = list(Path(out).glob("*/ledger.jsonl"))
            if done.returncode or not ledgers:
                sys.exit(f"run {seed} failed with exit code {done.returncode}: {done.stderr}")
            ledger = Ledger(ledgers[0])
        spent.append(ledger.budgeted_s)
        discarded = sum(phase.name.startswith("discarded") for phase in ledger.phases)
        print(f"run {seed}: {spent[-1]:.6f} s of {limit_s:g}, {discarded} discarded", flush=True)
    over = sum(seconds > limit_s for seconds in spent)
    print(
        f"{over} of {len(spent)} over {limit_s:g} s; most {max(spent):.6f}, least {min(spent):.6f}"
    )
    return bool(over)


def check_short_ones(count: int, seed: int) -> bool:
    """Whether one was over its budget, or the median leaves more than one and a half steps."""
    rows: list[dict[str, Any]] = []
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(world), __file__, "--rank-of", folder]
            command += ["--short", str(count // 2), "--seed", str(seed + world)]
            subprocess.run(command, check=True, cwd=ROOT)
            lines = Path(folder, "runs.jsonl").read_text().splitlines()
            rows += [json.loads(line) | {"ranks": world} for line in lines]
    over = [row for row in rows if row["spent_s"] > row["budget_s"]]
    print(f"{len(over)} of {len(rows)} over their budget, {sum(r['stalls'] for r in rows)} stalls")
    medians = []
    for world in (1, 2):
        mine = [row for row in rows if row["ranks"] == world]
        unused = [(row["budget_s"] - row["spent_s"]) / row["step_s"] for row in mine]
        medians.append(statistics.median(unused))
        print(
            f"{world} ranks: {len(mine)} runs, {sum(row['discarded'] for row in mine)} with steps "
            f"thrown away, {sum(not row['steps'] for row in mine)} without any other; "
            f"left unused, in steps of the run: median {medians[-1]:.2f}, most {max(unused):.1f}"
        )
    return bool(over) or max(medians) > 1.5


def run_short_ones(folder: Path, count: int, seed: int) -> None:
    """What each rank does; rank 0 writes what became of each run to `runs.jsonl`."""
    import numpy as np
    import torch

    from speedrun.clock import Clock
    from speedrun.config import DataConfig, ModelConfig, RunConfig, TrainConfig
    from speedrun.data.batches import open_batches
    from speedrun.data.shards import write_shard
    from speedrun.errors import BudgetError
    from speedrun.ranks import Ranks
    from speedrun.train import loop
    from speedrun.train.log import RunLog
    from speedrun.train.step import Step

    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    run = RunConfig(
        name="check/short",
        model=ModelConfig(
            vocab_size=256, num_layers=2, width=64, num_heads=2, num_kv_heads=1, mlp_hidden=128
        ),
        data=DataConfig(sequence_length=128, tokens_per_step=2048, micro_batch_tokens=2048),
        train=TrainConfig(warmup_steps=2, compile="no", precision="float32", log_every_steps=5),
    )
    own = folder / f"rank{ranks.rank}"
    own.mkdir()
    write_shard(own / "text_train_000000.bin", np.random.default_rng(1).integers(0, 256, 200_000))
    batches = open_batches([own / "text_train_000000.bin"], run)
    budgets, dice = random.Random(seed), random.Random(f"{seed} {ranks.rank}")

    class Stalling(Step):
        seconds: list[float] = []  # noqa: RUF012 (one run at a time)
        stalls = 0
        expected_steps = 1.0

        def __call__(self, *arguments: Any) -> torch.Tensor:
            begun = time.perf_counter()
            self.stand_still()
            told = super().__call__(*arguments)
            Stalling.seconds.append(time.perf_counter() - begun)
            self.stand_still()
            return told

        @classmethod
        def stand_still(cls) -> None:
            chance = STALLS_PER_RUN / ranks.world / cls.expected_steps / 3
            if dice.random() < chance:
                cls.stalls += 1
                time.sleep(dice.uniform(0.05, 1.5))

    loop.Step = Stalling  # type: ignore[misc]
    for number in range(count):
        budget_s = budgets.uniform(1, 5)
        Stalling.seconds, Stalling.stalls = [], 0
        Stalling.expected_steps = budget_s / 0.03
        timed = dataclasses.replace(run, seed=number)
        ledger = Ledger(own / f"ledger{number}.jsonl" if ranks.is_main else None)
        log = RunLog(on_step=lambda progress, elapsed_s, nats: Stalling.stand_still())
        try:
            steps = loop.train(timed, batches, Clock(budget_s, ledger), ranks, log).steps
        except BudgetError:  # its only step stood still for longer than the budget
            steps = 0
        stalls = sum(ranks.collect(Stalling.stalls))
        if ranks.is_main:
            row = {
                "budget_s": budget_s,
                "spent_s": ledger.budgeted_s,
                "steps": steps,
                "step_s": statistics.median(Stalling.seconds[3:]),
                "stalls": stalls,
                "discarded": any(phase.details.get("discarded_steps") for phase in ledger.phases),
            }
            with (folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
    ranks.close()


if __name__ == "__main__":
    main()
