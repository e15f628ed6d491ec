"""What packing real weights costs and loses: one table for a run folder.

    python tools/bench_pack.py RUN [--tokens 8192] [--batches 24] [--parts codecs,methods,caps]

    codecs   the recipe's rounding to the nearest: every codec on the same codes, and the entropy
    methods  nearest rounding, GPTQ at its scales and at the best of eight scales a row, and
             auto-fit in the bytes of the latter; at several uniform bits
    caps     auto-fit alone at several sizes

RUN comes from tools/train_packing_weights.py. Calibration reads the training batches that follow
the last step. Scores are of the first `--tokens` validation tokens in chunks: to compare, not to
claim. Seconds are of CPU, over all threads, so that others on the machine do not count. External
compressors (lrzip, zpaq) are taken where they are installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from train_packing_weights import prepare

from speedrun.cli.folder import read_folder, read_trained
from speedrun.cli.sweep import score_part
from speedrun.config import QuantConfig, RunConfig
from speedrun.data.dataset import Dataset
from speedrun.model.gpt import GPT
from speedrun.pack import codecs
from speedrun.pack.container import read_container, read_header
from speedrun.pack.fit import fit_weights, matrix_loss, round_with_gptq
from speedrun.pack.weights import Rows, pack_weights, round_weights, unpack_weights, write_weights
from speedrun.quant.calibration import Calibration
from speedrun.train.calibrate import calibrate, open_training_batches

Weights = dict[str, torch.Tensor]


def entropy_bytes(array: np.ndarray) -> float:
    """Order-0 entropy of one tensor's codes."""
    counts = np.bincount(array.reshape(-1).astype(np.int64) + 128)
    counts = counts[counts > 0]
    return float((counts * np.log2(array.size / counts)).sum()) / 8


def compare_codecs(weights: Weights, quant: QuantConfig) -> None:
    """Sizes of the same codes, tensors one after another, under every codec."""
    started = time.process_time()
    packed = pack_weights(weights, dataclasses.replace(quant, codec="ans"), {})
    seconds = time.process_time() - started
    started = time.process_time()
    unpack_weights(packed)
    print(f"pack_weights with ans: {len(packed):,} bytes in {seconds:.1f} s, ", end="")
    print(f"unpacked in {time.process_time() - started:.1f} s, {torch.get_num_threads()} threads")
    arrays, header = read_container(packed)[1], read_header(packed)
    own = {entry[3] for entry in header.arrays if entry[0].endswith(":codes")}
    ours = sum(header.sections[section][2] for section in own)
    codes = {name: array for name, array in arrays.items() if name.endswith(":codes")}
    raw = b"".join(array.tobytes() for array in codes.values())
    shapes = [(array.size // array.shape[-1], array.shape[-1]) for array in codes.values()]
    entropy = sum(map(entropy_bytes, codes.values()))
    print(f"{len(raw):,} codes, order-0 entropy per tensor {entropy:,.0f} bytes", flush=True)
    print(f"  {'ans':<8} {ours:>12,}  {ours / entropy:.4f}  a section for each width")
    for codec in ("zstd", "brotli", "lzma"):
        started = time.process_time()
        _, data = codecs.compress(raw, codec, shapes)
        took = time.process_time() - started
        started = time.process_time()
        assert codecs.decompress(data, codec, len(raw), shapes) == raw
        back = time.process_time() - started
        print(
            f"  {codec:<8} {len(data):>12,}  {len(data) / entropy:.4f}  {took:6.1f} s in, ", end=""
        )
        print(f"{back:5.1f} s out", flush=True)
    for command, ending in (
        (["lrzip", "-z", "-L9", "-T", "-q"], ".lrz"),
        (["zpaq", "add"], ".zpaq"),
    ):
        if shutil.which(command[0]) is None:
            print(f"  {command[0]:<8} not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "codes"
            path.write_bytes(raw)
            target = path.with_name(f"codes{ending}")
            words = [str(target), str(path), "-m5"] if command[0] == "zpaq" else [str(path)]
            subprocess.run([*command, *words], check=True, capture_output=True)
            size = target.stat().st_size
        print(f"  {command[0]:<8} {size:>12,}  {size / entropy:.4f}", flush=True)


def compare_methods(
    run: RunConfig, weights: Weights, found: Calibration, dataset: Dataset, tokens: int, bits: str
) -> None:
    """Nearest rounding, GPTQ and auto-fit: bytes and bpb at equal bits, then at equal bytes."""
    exact = score_part(run, weights, dataset, tokens)
    print(f"without rounding {exact:.5f} bpb on {tokens:,} tokens", flush=True)
    for width in map(int, bits.split(",")):
        quant = dataclasses.replace(
            run.quant, matrix_bits=width, embedding_bits=width, codec="ans", method="nearest"
        )
        ways = {
            "nearest": round_weights(weights, quant),
            "gptq": round_with_gptq(weights, quant, found, multiples=()),
            "gptq best of 8": round_with_gptq(weights, quant, found),
        }
        lost = []
        for label, rounded in ways.items():
            data = write_weights(rounded, "ans", {})
            loss = sum(
                matrix_loss(name, rows.weights() - weights[name], found)
                for name, rows in rounded.items()
                if isinstance(rows, Rows)
            )
            lost.append(score_part(run, unpack_weights(data)[1], dataset, tokens) - exact)
            print(f"  int{width} {label:<14} {len(data):>11,} bytes {lost[-1]:+.5f} bpb, ", end="")
            print(f"estimated {loss:.5f} nats a token", flush=True)
        started = time.process_time()
        fitted = fit_weights(weights, quant, {}, cap_bytes=len(data), calibration=found)
        took = time.process_time() - started
        loss = score_part(run, unpack_weights(fitted.data)[1], dataset, tokens) - exact
        shares = ", ".join(f"{each / lost[0] if lost[0] else math.nan:.2f}" for each in lost[1:])
        print(
            f"  int{width} auto-fit       {len(fitted.data):>11,} bytes {loss:+.5f} bpb, estimated "
            f"{fitted.loss:.5f}; {took:.0f} s, {fitted.tries} tries; gptq / nearest {shares}",
            flush=True,
        )


def sweep_caps(
    run: RunConfig, weights: Weights, found: Calibration, dataset: Dataset, tokens: int
) -> None:
    """Auto-fit at two to five bits a weight."""
    exact = score_part(run, weights, dataset, tokens)
    num_weights = sum(tensor.numel() for tensor in weights.values())
    quant = dataclasses.replace(run.quant, codec="ans")
    for bits in (2.0, 2.5, 3.0, 3.5, 4.0, 5.0):
        cap = int(num_weights * bits / 8)
        fitted = fit_weights(weights, quant, {}, cap_bytes=cap, calibration=found)
        loss = score_part(run, unpack_weights(fitted.data)[1], dataset, tokens) - exact
        used = len(fitted.data) / cap
        print(
            f"  {bits:.1f} bits {len(fitted.data):>11,} bytes ({used:.4f}) {loss:+.5f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--bits", default="6,5,4")
    parser.add_argument("--parts", default="codecs,methods,caps")
    arguments = parser.parse_args()
    run, _ = read_folder(arguments.run)
    trained = read_trained(arguments.run)
    if trained is None:
        raise SystemExit(f"{arguments.run} has no trained weights")
    parts, dataset = arguments.parts.split(","), prepare()
    print(f"{run.name}, seed {run.seed}, {trained.steps:,} steps")
    if "codecs" in parts:
        compare_codecs(trained.weights, run.quant)
    if parts == ["codecs"]:
        return
    model = GPT(run.model)
    model.load_state_dict(trained.weights)
    started = time.process_time()
    batches = open_training_batches(dataset.train_shards, run)
    found = calibrate(
        model,
        batches.at,
        source="training",
        first_step=trained.steps,
        num_batches=arguments.batches,
    )
    took = time.process_time() - started
    print(f"calibrated on {found.num_tokens:,} training tokens in {took:.0f} s", flush=True)
    if "methods" in parts:
        compare_methods(run, trained.weights, found, dataset, arguments.tokens, arguments.bits)
    if "caps" in parts:
        sweep_caps(run, trained.weights, found, dataset, arguments.tokens)


if __name__ == "__main__":
    main()
