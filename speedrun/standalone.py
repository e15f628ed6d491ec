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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from speedrun.bpb import Score, score
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.data.shards import Tokens, list_shards, open_shard
from speedrun.errors import FormatError, OutputError, SpeedrunError
from speedrun.files import write_atomic
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
        model.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    except (KeyError, TypeError, RuntimeError, SpeedrunError) as error:
        raise FormatError(f"model.srz: weights and settings do not fit: {error}") from error
    return run, ModelPredictor(model, run.model.vocab_size)


def main(run: RunConfig, pack: Callable[..., bytes] | None = None) -> None:
    """Entry of the bundle, called with the resolved recipe that it was built from.

    `pack(run, trained, shards, clock)` is how its recipe packs, if not by rounding to the nearest.
    """
    try:
        if sys.argv[1:2] == ["predict"]:
            _predict(Path(*sys.argv[2:3] or ["model.srz"]))
        else:
            _train(run, _parse_arguments(run), pack)
    except SpeedrunError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 (this is a command line)
        sys.exit(error.exit_code)


def _parse_arguments(run: RunConfig) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and pack, or: predict model.srz")
    parser.add_argument("--data", type=Path, default=os.environ.get("DATA_PATH", "."))
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED", run.seed))
    parser.add_argument("--budget", type=float, default=run.train.budget_s, help="seconds")
    return parser.parse_args()


def _predict(path: Path) -> None:
    connection = take_stdio()
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    serve(load_predictor(packed)[1], connection)


def _train(
    run: RunConfig, arguments: argparse.Namespace, pack: Callable[..., bytes] | None
) -> None:
    data, out = arguments.data, arguments.out
    timed = dataclasses.replace(run.train, budget_s=arguments.budget)
    run = dataclasses.replace(run, seed=arguments.seed, train=timed)
    shards = list_shards(data, "train")
    batches = open_batches(shards, run)
    ranks = Ranks.from_environment()
    log, ledger = RunLog(), Ledger(None)
    if ranks.is_main:
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name in ("ledger.jsonl", "train.log", "metrics.jsonl"):
                (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{out}: cannot write there: {error.strerror}") from None
        log, ledger = RunLog(out, print), Ledger(out / "ledger.jsonl")
    clock = Clock(run.train.budget_s - run.quant.calibration_s, ledger)
    trained = train(run, batches, clock, ranks, log)
    ranks.close()
    if not ranks.is_main:
        return
    if pack is None:
        packed = pack_weights(trained.weights, run.quant, {"run": run.to_dict()})
    else:
        packed = pack(run, trained, shards, clock)
    write_atomic(out / "model.srz", packed)
    log.line(f"Serialized model: {len(packed)} bytes")
    manifest, pieces = data / "manifest.json", os.environ.get("TOKENIZER_PATH")
    if manifest.exists() or pieces:
        tokens = np.concatenate([open_shard(path) for path in list_shards(data, "val")])
        if manifest.exists():
            num_bytes = json.loads(manifest.read_text())["val_raw_bytes"]
        else:  # the golf contest's folders: whole sequences, and bytes by the tokenizer's table
            tokens = tokens[: (len(tokens) - 1) // 2048 * 2048 + 1]
            num_bytes = count_bytes(tokens, str(pieces))
        score_packed(packed, tokens, num_bytes=num_bytes, log=log)


def count_bytes(tokens: Tokens, pieces: str) -> int:
    """Bytes behind the targets of a stream by a SentencePiece model, as the golf contest counts.

    A space counts unless a special token is before it. `data.raw_bytes` says the same; with all
    that it needs, it would cost a submission ten times the bytes.
    """
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=pieces)
    size = max(model.vocab_size(), int(tokens.max(initial=0)) + 1)
    length, spaced, special = np.zeros(size, int), np.zeros(size, bool), np.ones(size, bool)
    for piece in range(model.vocab_size()):
        if not (model.is_control(piece) or model.is_unknown(piece) or model.is_unused(piece)):
            text, special[piece] = model.id_to_piece(piece), False
            spaced[piece] = text[:1] == "\u2581"
            rest = text.removeprefix("\u2581").replace("\u2581", " ").encode()
            length[piece] = 1 if model.is_byte(piece) else len(rest)
    before, target = tokens[:-1], tokens[1:]
    return int(length[target].sum() + (spaced[target] & ~special[before]).sum())


def score_packed(packed: bytes, tokens: Tokens, *, num_bytes: int, log: RunLog) -> Score:
    """Score packed weights as the judge will, and log the field's line.

    Raises
        FormatError: see `load_predictor`.
    """
    run, predictor = load_predictor(packed)
    result = score(predictor, tokens, num_bytes=num_bytes, **dataclasses.asdict(run.evaluation))
    log.line(
        f"final_sliding_window_exact val_loss:{result.nats_per_token:.8f} "
        f"val_bpb:{result.bpb:.8f} stride:{run.evaluation.stride} "
        f"eval_time:{1000 * result.seconds:.0f}ms"
    )
    return result
