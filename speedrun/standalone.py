"""What a submission does on its own: train, unpack and predict, with no `speedrun` installed.

`pack.bundle` ships this file and all that it imports as `train_gpt.py`, which calls `main`.

    python train_gpt.py                      train on the shards in DATA_PATH, write model.srz here
    torchrun --nproc-per-node 8 train_gpt.py the same on eight GPUs
    python train_gpt.py predict model.srz    answer a judge on stdin and stdout
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from speedrun.bpb import Score, score
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.data.shards import list_shards, open_shard
from speedrun.errors import FormatError, SpeedrunError
from speedrun.model.gpt import GPT
from speedrun.pack.weights import pack_weights, unpack_weights
from speedrun.predict import ModelPredictor, serve, take_stdio
from speedrun.ranks import Ranks
from speedrun.train.log import RunLog
from speedrun.train.loop import train


def load_predictor(packed: bytes) -> tuple[RunConfig, ModelPredictor]:
    """Rebuild the network that a `model.srz` holds: its settings travel in the file.

    Raises
        FormatError: the bytes are damaged, or the weights do not fit the settings beside them.
    """
    meta, weights = unpack_weights(packed)
    try:
        run = RunConfig.from_dict(meta["run"])
        model = GPT(run.model)
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, SpeedrunError) as error:
        raise FormatError(f"model.srz: weights and settings do not fit: {error}") from error
    return run, ModelPredictor(model.requires_grad_(False), run.model.vocab_size)


def main(run: RunConfig) -> None:
    """Entry of the bundle, called with the resolved recipe that it was built from."""
    if sys.argv[1:2] == ["predict"]:
        connection = take_stdio()
        _, predictor = load_predictor(Path(sys.argv[2]).read_bytes())
        serve(predictor, connection)
        return
    parser = argparse.ArgumentParser(description="Train and pack, or: predict model.srz")
    parser.add_argument("--data", type=Path, default=os.environ.get("DATA_PATH", "."))
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED"))
    parser.add_argument("--budget", type=float, default=run.train.budget_s, help="seconds")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        run = dataclasses.replace(run, seed=int(arguments.seed))
    try:
        _train(run, Path(arguments.data), arguments.out, arguments.budget)
    except SpeedrunError as error:
        sys.exit(f"error: {error}")


def _train(run: RunConfig, data: Path, out: Path, budget_s: float) -> None:
    ranks = Ranks.from_environment()
    ledger = out / "ledger.jsonl"
    if ranks.is_main:
        out.mkdir(parents=True, exist_ok=True)
        ledger.unlink(missing_ok=True)
    clock = Clock(budget_s, Ledger(ledger if ranks.is_main else None))
    log = RunLog(out, print) if ranks.is_main else RunLog()
    trained = train(run, open_batches(list_shards(data, "train"), run), clock, ranks, log)
    ranks.close()
    if not ranks.is_main:
        return
    packed = pack_weights(trained.weights, run.quant, {"run": run.to_dict()})
    (out / "model.srz").write_bytes(packed)
    log.line(f"Serialized model: {len(packed)} bytes")
    manifest = data / "manifest.json"
    if manifest.exists():
        num_bytes = json.loads(manifest.read_text())["val_raw_bytes"]
        result = _score(packed, data, num_bytes)
        log.line(
            f"final_sliding_window_exact val_loss:{result.nats_per_token:.8f} "
            f"val_bpb:{result.bpb:.8f} stride:{run.evaluation.stride} "
            f"eval_time:{1000 * result.seconds:.0f}ms"
        )


def _score(packed: bytes, data: Path, num_bytes: int) -> Score:
    import numpy as np

    run, predictor = load_predictor(packed)
    tokens = np.concatenate([open_shard(path) for path in list_shards(data, "val")])
    return score(
        predictor,
        tokens,
        num_bytes=num_bytes,
        context=run.evaluation.context,
        stride=run.evaluation.stride,
        batch_windows=run.evaluation.batch_windows,
    )
