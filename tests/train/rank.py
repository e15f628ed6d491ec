"""One rank of a tiny training, for tests that need several: `python rank.py TASK.json`.

The task names a folder with shards, settings, and what shall go wrong; the rank leaves in that
folder what it saw. Run in one process without torchrun's variables, it is the run to compare with.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from speedrun.clock import Clock, Ledger
from speedrun.config import CountConfig, DataConfig, ModelConfig, RunConfig, TrainConfig
from speedrun.data.batches import open_batches
from speedrun.data.shards import list_shards
from speedrun.errors import SpeedrunError
from speedrun.ranks import Ranks
from speedrun.train.checkpoint import Checkpoints
from speedrun.train.log import RunLog
from speedrun.train.loop import train
from speedrun.train.replicas import checksum

# Three layers give stacks of three and six matrices, which two and four ranks share unevenly.
TINY = RunConfig(
    name="test/ranks",
    model=ModelConfig(
        vocab_size=32, num_layers=3, width=16, num_heads=2, num_kv_heads=1, mlp_hidden=24
    ),
    data=DataConfig(sequence_length=16, tokens_per_step=64, micro_batch_tokens=32),
    train=TrainConfig(max_steps=4, warmup_steps=1, compile="no", precision="float32"),
)
COUNTED = CountConfig(entries=(40,), min_count=2, held_out_tokens=1_000)


def settings(changes: dict[str, dict[str, Any]]) -> RunConfig:
    """TINY with keys of its sections replaced."""
    run = TINY
    if changes.get("model", {}).get("ngram_order"):
        run = dataclasses.replace(
            run, model=dataclasses.replace(run.model, ngram_order=2), count=COUNTED
        )
    for section, keys in changes.items():
        changed = dataclasses.replace(getattr(run, section), **keys)
        run = dataclasses.replace(run, **{section: changed})
    return run


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Train as told; returns and writes what this rank saw."""
    folder = Path(task["folder"])
    ranks = Ranks.from_environment()
    run = settings(task.get("changes", {}))
    seen: dict[str, list[Any]] = {"nats": [], "progress": [], "sums": [], "looks": [], "lines": []}
    # What goes wrong, on which rank, once how many steps are done.
    kill, drift, stall, stop = (
        task.get(name, {}).get(str(ranks.rank), -1) for name in ("kill", "drift", "stall", "stop")
    )
    done = 0

    def on_step(progress: float, elapsed_s: float, nats: float) -> None:
        nonlocal done
        done += 1
        seen["nats"].append(nats)
        seen["progress"].append(progress)
        if done == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == stall:
            time.sleep(task["stall_s"])

    class Watched(RunLog):
        def line(self, text: str) -> None:
            super().line(text)
            seen["lines"].append(text)

    from speedrun.train import loop

    step_class = loop.Step

    class Step(step_class):
        calls = -run.train.warmup_steps - 1

        def __call__(self, *arguments: Any) -> torch.Tensor:
            told = super().__call__(*arguments)
            self.calls += 1
            if self.calls > 0:
                seen["sums"].append(checksum(self.model.parameters()))
            if self.calls == drift:
                with torch.no_grad():
                    self.model.skip_weights += 1e-7
            return told

    loop.Step = Step
    log = Watched(folder if ranks.is_main and task.get("logs") else None, on_step=on_step)
    ledger = Ledger(folder / "ledger.jsonl" if ranks.is_main and task.get("logs") else None)
    facts: dict[str, Any] = seen
    try:
        trained = train(
            run,
            open_batches(list_shards(folder, "train"), run),
            Clock(task.get("budget_s", 1e6), ledger),
            ranks,
            log,
            checkpoints=Checkpoints(folder, run) if task.get("saves") else None,
            validate=lambda model, step: seen["looks"].append(step),
            should_stop=lambda: done == stop,
        )
        facts |= {
            "steps": trained.steps,
            "seconds": trained.seconds,
            "interrupted": trained.interrupted,
            "weights": {name: tensor.tolist() for name, tensor in trained.weights.items()},
        }
    except SpeedrunError as error:
        facts["error"] = f"{type(error).__name__}: {error}"
    finally:
        loop.Step = step_class
    name = f"{task.get('name', 'rank')}{ranks.rank}of{ranks.world}.json"
    (folder / name).write_text(json.dumps(facts))
    ranks.close()
    return facts


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
