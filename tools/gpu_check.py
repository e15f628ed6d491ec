"""Everything that wants a GPU, in one call: kernels, a judged process, steps, a training run.

    python tools/gpu_check.py [--out FOLDER] [--seconds 60] [--recipe golf/baseline --recipe ...]

Prints a report and, with --out, writes it to gpu_check.json there. Data are synthetic tokens with
structure (a random walk over the alphabet), so losses fall but mean nothing. `--set` shrinks a
recipe, which lets the script itself be tried on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from speedrun import predict
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.data.shards import write_shard
from speedrun.files import write_atomic
from speedrun.hardware import describe_machine
from speedrun.kernels.newton_schulz import newton_schulz, newton_schulz_ref
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.optim.groups import build_optimizers
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe
from speedrun.train.log import RunLog
from speedrun.train.loop import train
from speedrun.train.step import Step
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import Cell, Limits, gpu_devices

PUBLISHED_MS = {"golf/baseline": 43.54, "golf/xsa4-ema": 84.47, "golf/partial-rope": 85.09}
"""Milliseconds a step on 8xH100, from the published logs."""


def check_kernels(device: torch.device) -> dict[str, float]:
    """Largest difference between each fast path and its reference."""
    updates = torch.randn(3, 64, 160, device=device)
    fast = newton_schulz(updates, 5).float()
    slow = torch.stack([newton_schulz_ref(update, 5) for update in updates.float()])
    return {"newton_schulz": float((fast - slow).abs().max())}


def check_model(run: RunConfig, device: torch.device) -> dict[str, float]:
    """The network on this device against the CPU, in float32."""
    model = build_model(run.model, seed=1)
    ids = torch.randint(run.model.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        here = model(ids)
        there = model.to(device)(ids.to(device)).cpu()
    return {"largest_logit_difference": float((here - there).abs().max())}


def time_steps(run: RunConfig, ranks: Ranks, steps: int = 12) -> dict[str, Any]:
    """Median step of the compiled trainer, tokens/s, memory, and what eight of these would do."""
    model: GPT = build_model(run.model, seed=1).to(ranks.device)
    step = Step(model, build_optimizers(model, run.optim), run, ranks)
    shape = (run.data.tokens_per_step // run.data.sequence_length, run.data.sequence_length)
    tokens = torch.randint(run.model.vocab_size, shape, device=ranks.device)
    seconds = []
    for number in range(steps + 3):
        started = time.perf_counter()
        step(tokens, tokens.roll(-1, 1), 0.5)
        ranks.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "step": step.description,
        "milliseconds": 1000 * median,
        "spread_milliseconds": 1000 * statistics.pstdev(seconds),
        "tokens_per_second": run.data.tokens_per_step / median,
        "teraflops_without_attention": 6e-12 * parameters * run.data.tokens_per_step / median,
        "peak_memory_bytes": torch.cuda.max_memory_allocated()
        if ranks.device.index is not None
        else 0,
        "projected_ms_on_8": 1000 * median / 8,
        "published_ms_on_8xH100": PUBLISHED_MS.get(run.name),
    }


def train_for(run: RunConfig, seconds: float, ranks: Ranks) -> dict[str, Any]:
    """A real run of the loop inside a budget."""
    generator = np.random.default_rng(0)
    walk = np.cumsum(generator.integers(-3, 4, 20_000_000)) % run.model.vocab_size
    lines: list[str] = []
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "walk_train_000000.bin"
        write_shard(shard, walk.astype(np.uint16))
        clock = Clock(seconds, Ledger(None))
        trained = train(run, open_batches([shard], run), clock, ranks, RunLog(None, lines.append))
    return {
        "budget_seconds": seconds,
        "train_seconds": trained.seconds,
        "steps": trained.steps,
        "last_lines": lines[-3:],
    }


ON_DEVICE = """
import torch
connection = take_stdio()
class Submitted:
    vocab_size, kind = 8192, "fixed"
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        seeds = torch.from_numpy(tokens[asked]).cuda()[:, None].float()
        return torch.sin(seeds * torch.arange(1, 8193, device="cuda"))
    def observe(self, tokens):
        pass
serve(Submitted(), connection)
"""


class ThroughTheHost(RemotePredictor):
    """The judge as it is without a GPU: the reference of the other path."""

    def _open_block(self) -> None:
        pass


def check_device_memory(calls: int = 10) -> dict[str, Any]:
    """Logits of a judged process through GPU memory, bit for bit those through the host's."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device"}
    protocol = Path(predict.__file__).read_text(encoding="utf-8")
    errors = "from speedrun.errors import PredictorError\n"
    tokens = np.random.default_rng(0).integers(0, 8192, (1, 2048))
    found: dict[str, Any] = {}
    logits: list[torch.Tensor] = []
    with TemporaryDirectory() as folder:
        code = protocol.replace(errors, "class PredictorError(Exception): pass\n") + ON_DEVICE
        (Path(folder) / "train_gpt.py").write_text(code)
        (Path(folder) / "model.srz").touch()
        limits = Limits(devices=gpu_devices())
        with Cell(Path(folder), limits=limits, allow_unsandboxed=True) as cell:
            found["isolation"] = cell.isolation
            for kind in (RemotePredictor, ThroughTheHost):
                with kind(cell, ["train_gpt.py"], budget_s=120.0) as judged:
                    seconds = []
                    for _ in range(calls):
                        began = time.perf_counter()
                        answer = judged.predict(tokens, np.array([0]))
                        torch.cuda.synchronize()
                        seconds.append(time.perf_counter() - began)
                    found[judged.transport] = {"milliseconds": 1000 * statistics.median(seconds)}
                    logits.append(torch.as_tensor(answer).cpu().clone())
    found["same_bits"] = bool(torch.equal(*(each.view(torch.int32) for each in logits)))
    found["through_gpu_memory"] = "GPU memory" in found
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    ranks = Ranks.from_environment()
    report: dict[str, Any] = {"machine": describe_machine(), "device": str(ranks.device)}
    report["kernels"] = check_kernels(ranks.device)
    report["device_memory"] = check_device_memory()
    for name in arguments.recipe or ["golf/baseline", "golf/partial-rope"]:
        run = load_recipe(name, arguments.overrides)
        report[name] = check_model(run, ranks.device) | time_steps(run, ranks)
        report[name]["training"] = train_for(run, arguments.seconds, ranks)
        print(json.dumps({name: report[name]}, indent=2), flush=True)
    print(json.dumps(report["machine"] | report["kernels"] | report["device_memory"], indent=2))
    if arguments.out:
        write_atomic(arguments.out / "gpu_check.json", json.dumps(report, indent=2).encode())


if __name__ == "__main__":
    main()
