"""Everything that wants a GPU, in one call: kernels, a judged process, steps, a training run.

    python tools/gpu_check.py [--out FOLDER] [--seconds 60] [--recipe golf/baseline --recipe ...]
                              [--rounds 4] [--skip tests,kernels,device_memory,bench,training]

Prints what it does on stderr and one JSON document on stdout; with --out that goes to
gpu_check.json there, too. A part that fails says so in its place, and the others run. Data are
synthetic tokens with structure, so losses fall but mean nothing. `--set` shrinks a recipe, which
lets the script itself be tried on a CPU:

    python tools/gpu_check.py --seconds 5 --rounds 1 --recipe golf/baseline --set model.width=64
        --set data.tokens_per_step=4096 --set data.micro_batch_tokens=2048
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from speedrun import predict
from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.data.batches import open_batches
from speedrun.files import write_atomic
from speedrun.hardware import describe_machine
from speedrun.kernels import choose
from speedrun.kernels.newton_schulz import newton_schulz, newton_schulz_ref
from speedrun.measure.bench import bench, synthetic_shard
from speedrun.model.init import build_model
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe
from speedrun.train.fast_paths import measure, trials
from speedrun.train.log import RunLog
from speedrun.train.loop import train
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import Cell, Limits, gpu_devices

ROOT = Path(__file__).parents[1]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_tests() -> dict[str, Any]:
    """The kernels' own tests, on the GPU if there is one and in Triton's interpreter otherwise."""
    names = ["test_kernels.py", "fused_cases.py" if torch.cuda.is_available() else "test_fused.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    files = [str(ROOT / "tests" / "kernels" / name) for name in names]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    return {"passed": done.returncode == 0, "last_lines": done.stdout.strip().splitlines()[-12:]}


def check_newton_schulz(device: torch.device) -> dict[str, float]:
    """Largest difference between the batched iteration here and its reference."""
    updates = torch.randn(3, 64, 160, device=device)
    fast = newton_schulz(updates, 5).float()
    slow = torch.stack([newton_schulz_ref(update, 5) for update in updates.float()])
    return {"largest_difference": float((fast - slow).abs().max())}


def check_kernels(run: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """Each fused kernel and each way to attend beside torch.compile's own, at a recipe's shapes.

    A ratio above 1 is a gain. What is below 1.05 on every GPU at hand deserves to be removed.
    """
    if ranks.device.type != "cuda":
        return {"skipped": "no CUDA device"}
    found: dict[str, Any] = {}
    for trial in trials(run, ranks):
        for finding in measure(trial):
            found[f"{trial.name}: {finding.way}"] = finding.failure or {
                "times_as_fast": round(finding.ratio, 3),
                "largest_difference": finding.difference,
            }
    choose.choose(frozenset())
    torch.compiler.reset()
    return found


def check_model(run: RunConfig, device: torch.device) -> dict[str, float]:
    """The network on this device against the CPU, in float32."""
    model = build_model(run.model, seed=1)
    ids = torch.randint(run.model.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        here = model(ids)
        there = model.to(device)(ids.to(device)).cpu()
    return {"largest_logit_difference": float((here - there).abs().max())}


def train_for(run: RunConfig, seconds: float, ranks: Ranks) -> dict[str, Any]:
    """A real run of the loop inside a budget."""
    lines: list[str] = []
    with TemporaryDirectory() as folder:
        batches = open_batches([synthetic_shard(Path(folder), run)], run)
        clock = Clock(seconds, Ledger(None))
        trained = train(run, batches, clock, ranks, RunLog(None, lines.append))
    return {
        "budget_seconds": seconds,
        "train_seconds": trained.seconds,
        "steps": trained.steps,
        "first_lines": lines[:12],
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


def attempt(name: str, part: Callable[[], Any], report: dict[str, Any]) -> None:
    """Put into the report what a part finds, or how it failed."""
    say(f"{name} ...")
    began = time.perf_counter()
    try:
        report[name] = part()
    # Device time is scarce: one part that breaks must not cost the others.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        report[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    say(f"{name}: {time.perf_counter() - began:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--skip", default="")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    skipped = set(arguments.skip.split(","))
    ranks = Ranks.from_environment()
    report: dict[str, Any] = {"machine": describe_machine(), "device": str(ranks.device)}
    parts: dict[str, Callable[[], Any]] = {}
    runs = [
        load_recipe(name, ['train.kernels="auto"', *arguments.overrides])
        for name in arguments.recipe or ["golf/baseline", "golf/partial-rope"]
    ]
    # What is most worth knowing comes first, in case the time is cut short.
    if "kernels" not in skipped:
        parts["newton_schulz"] = lambda: check_newton_schulz(ranks.device)
        parts[f"kernels at {runs[-1].name}"] = lambda: check_kernels(runs[-1], ranks)
    for run in runs:
        if "bench" not in skipped:
            parts[f"model {run.name}"] = lambda run=run: check_model(run, ranks.device)
            parts[f"bench {run.name}"] = lambda run=run: bench(
                run, ranks, rounds=arguments.rounds, compare=True, say=say
            ).to_dict()
    if "training" not in skipped:
        parts[f"training {runs[-1].name}"] = lambda: train_for(runs[-1], arguments.seconds, ranks)
    if "device_memory" not in skipped:
        parts["device_memory"] = check_device_memory
    if "tests" not in skipped:
        parts["tests"] = run_tests
    for name, part in parts.items():
        attempt(name, part, report)
        if arguments.out:  # after every part: what was found stays found
            write_atomic(arguments.out / "gpu_check.json", json.dumps(report, indent=2).encode())
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
