"""How fast a recipe's step is here: by phase, against the machine's peak, against plain torch."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedrun.config import RunConfig
from speedrun.data.batches import Batches, open_batches
from speedrun.data.feed import Feed
from speedrun.data.shards import write_shard
from speedrun.files import atomic_path
from speedrun.hardware import hardware_name
from speedrun.kernels.choose import choosing
from speedrun.measure.rates import matmul_flops, training_dtype, wait_for
from speedrun.model.counting import count_ngrams
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.optim.averaging import WeightAverage
from speedrun.optim.groups import build_optimizers, claim_parameters
from speedrun.ranks import Ranks
from speedrun.train.fast_paths import settle_fast_paths
from speedrun.train.step import Step

PUBLISHED_MS = {"golf/baseline": 43.54, "golf/xsa4-ema": 84.47, "golf/partial-rope": 85.09}
"""Milliseconds of a step on 8xH100, from the logs that were published with the records."""
PUBLISHED_GPUS = 8
PHASES = ("data", "forward", "backward", "communication", "optimiser", "averaging")
STEPS_PER_ROUND = 3
MIDDLE = 0.5
"""The progress at which every step is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A plain step of the same network, measured by turns with ours."""

    what: str
    step_ms: float
    tokens_per_s: float
    ratio: float
    """Our tokens per second over these: the median over rounds."""
    lowest_ratio: float
    highest_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What `bench` found. Rates are those of all ranks together."""

    recipe: str
    hardware: str
    torch: str
    step: str
    fast_paths: list[str]
    parameters: int
    tokens_per_step: int
    step_ms: float
    step_ms_spread: float
    tokens_per_s: float
    phases_ms: dict[str, float]
    """The device is drained between them, so they add up to more than a step that overlaps them.
    Where `step` says that gradients come in one graph, all of it but reading is `backward`."""
    flops_per_token: float
    peak_flops: float
    """Of a large product in the step's dtype, measured here, times the number of ranks."""
    utilisation: float
    """Model operations per second over `peak_flops`: what is usually called MFU."""
    peak_memory_bytes: int
    published_ms_on_8: float | None
    projected_ms_on_8: float | None
    """Passes split over eight of these GPUs, the rest as it is here, messages left out."""
    compared: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


class Stopwatch:
    """Sums the time of named phases; the device is drained at their borders."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of a block to `name`."""
        wait_for(self._device)
        started_s = time.perf_counter()
        yield
        wait_for(self._device)
        self.seconds[name] += time.perf_counter() - started_s


def flops_per_token(run: RunConfig) -> float:
    """Operations that a training step needs per token: twice a weight, forwards and twice back.

    Every matrix that multiplies counts, the head once, looked-up tables not at all. Attention adds
    12 C of the T/2 tokens that a token sees on average, in every layer.
    """
    with torch.device("meta"):
        model = GPT(run.model)
    matrices = sum(parameter.numel() for _, parameter in claim_parameters(model)["matrix"])
    head = run.model.width * run.model.vocab_size
    seen = (run.model.block_length or run.data.sequence_length) / 2
    return 6 * (matrices + head) + 12 * run.model.width * seen * run.model.num_layers


def synthetic_shard(folder: Path, run: RunConfig) -> Path:
    """A training shard of a text in which each token hangs on the one before: no data is needed."""
    counted = 3 * run.count.held_out_tokens if run.model.ngram_order else 0
    num_tokens = max(8 * run.data.tokens_per_step, counted) + run.data.sequence_length + 1
    dice = np.random.default_rng(0)
    moves = np.minimum(dice.zipf(1.3, num_tokens), run.model.vocab_size)
    shard = folder / "synthetic_train_000000.bin"
    write_shard(shard, np.cumsum(moves) % run.model.vocab_size)
    return shard


class Ours:
    """The trainer's own step, with everything that the loop does around it."""

    def __init__(self, run: RunConfig, model: GPT, batches: Batches, ranks: Ranks) -> None:
        self.optimizers = build_optimizers(model, run.optim, ranks)
        self.average = WeightAverage(model, run.average)
        self.step = Step(model, self.optimizers, run, ranks)
        self.feed = Feed(batches, rank=ranks.rank, world=ranks.world, device=ranks.device)

    def __call__(self) -> None:
        """One step."""
        with self.step.phase("data"):
            inputs, targets = self.feed.next()
        self.step(inputs, targets, MIDDLE)
        with self.step.phase("averaging"):
            self.average.update(MIDDLE)


class Plain:
    """What anybody would write: torch.compile if asked, SDPA, `torch.optim.Muon` and AdamW."""

    def __init__(
        self,
        run: RunConfig,
        model: GPT,
        batches: Batches,
        ranks: Ranks,
        *,
        like: Step,
        compiled: bool,
        own_muon: bool = False,
    ) -> None:
        """`like` lends its precision and micro-batches; `own_muon` lends it our optimisers."""
        self.what = (
            f"plain torch, {'compiled' if compiled else 'eager'}, "
            f"{'our Muon' if own_muon else 'torch.optim.Muon'}"
        )
        self.optimizers = build_optimizers(model, run.optim) if own_muon else _plain(model, run)
        self._read, self._micro_batches = model.read, like.micro_batches
        self._autocast: Callable[[], Any] = (
            nullcontext
            if like.dtype is None
            else lambda: torch.autocast(ranks.device.type, dtype=like.dtype)
        )
        self._loss: Callable[..., Tensor] = (
            torch.compile(model.loss, fullgraph=True, dynamic=False) if compiled else model.loss
        )
        self.feed = Feed(batches, rank=ranks.rank, world=ranks.world, device=ranks.device)

    def __call__(self) -> None:
        """One step."""
        inputs, targets = self.feed.next()
        parts = self._micro_batches
        with choosing(frozenset()):
            for part in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
                with self._autocast():
                    loss = self._loss(*part, *self._read(*part)) / parts
                loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()


def bench(
    run: RunConfig,
    ranks: Ranks,
    *,
    rounds: int = 5,
    compare: bool = False,
    profile: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Measure a recipe's step on this machine, on synthetic text.

    Rounds of `STEPS_PER_ROUND` steps take turns with a plain step where one is compared, so that a
    machine whose speed drifts treats both alike. `profile` receives a chrome trace of one round.

    Raises
        ConfigError: the recipe does not fit this machine.
    """
    device = ranks.device
    lines: list[str] = []
    if run.train.kernels != "off":
        say("measuring fast paths")
        lines = settle_fast_paths(run, ranks)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        batches = open_batches([synthetic_shard(Path(folder), run)], run)
        tables = count_tables(run, batches)
        ours = Ours(run, build_network(run, device, tables), batches, ranks)
        say(ours.step.description)
        contestants: dict[str, Callable[[], None]] = {"ours": ours}
        stack.enter_context(ours.feed)
        plain = None
        if compare:
            network = build_network(run, device, tables)
            plain = Plain(run, network, batches, ranks, like=ours.step, compiled=ours.step.compiled)
            stack.enter_context(plain.feed)
            contestants["plain"] = plain
        for name, advance in contestants.items():
            say(f"warming up: {name}")
            for _ in range(STEPS_PER_ROUND):
                advance()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        say(f"measuring {rounds} rounds of {STEPS_PER_ROUND} steps")
        seconds = take_turns(contestants, rounds, device)
        memory = _peak_memory(device)
        phases = _phases(ours, device)
        if profile is not None:
            say(f"writing a trace of {STEPS_PER_ROUND} steps to {profile}")
            _trace(ours, device, profile)
    step_s = statistics.median(seconds["ours"])
    peak = ranks.world * matmul_flops(device, training_dtype(device, run.train.precision))
    needed = flops_per_token(run)
    tokens_per_s = run.data.tokens_per_step / step_s
    return Bench(
        recipe=run.name,
        hardware=hardware_name(),
        torch=torch.__version__,
        step=ours.step.description,
        fast_paths=lines,
        parameters=sum(parameter.numel() for parameter in ours.step.model.parameters()),
        tokens_per_step=run.data.tokens_per_step,
        step_ms=1000 * step_s,
        step_ms_spread=1000 * statistics.pstdev(seconds["ours"]),
        tokens_per_s=tokens_per_s,
        phases_ms=phases,
        flops_per_token=needed,
        peak_flops=peak,
        utilisation=needed * tokens_per_s / peak,
        peak_memory_bytes=memory,
        published_ms_on_8=PUBLISHED_MS.get(run.name),
        projected_ms_on_8=project(phases, ranks.world) if device.type == "cuda" else None,
        compared=_compare(plain.what, seconds, run) if plain else None,
    )


def project(phases_ms: dict[str, float], world: int) -> float:
    """Milliseconds of a step on `PUBLISHED_GPUS` such GPUs that never wait for a message."""
    split = sum(phases_ms.get(name, 0.0) for name in ("data", "forward", "backward"))
    rest = sum(phases_ms.get(name, 0.0) for name in ("optimiser", "averaging"))
    return split * world / PUBLISHED_GPUS + rest


def build_network(run: RunConfig, device: torch.device, tables: dict[str, Tensor]) -> GPT:
    """The recipe's network with its starting weights, and tables from `count_tables`."""
    model = build_model(run.model, seed=run.seed)
    if model.ngram is not None:
        model.ngram.fill(tables)
    return model.to(device)


def count_tables(run: RunConfig, batches: Batches) -> dict[str, Tensor]:
    """What the network's n-gram table is filled with; nothing where it has none."""
    if not run.model.ngram_order:
        return {}
    return count_ngrams(np.concatenate(batches.earlier), run.count, run.model.vocab_size)


def take_turns(
    contestants: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of a step in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, advance in contestants.items():
            wait_for(device)
            started_s = time.perf_counter()
            for _ in range(STEPS_PER_ROUND):
                advance()
            wait_for(device)
            seconds[name].append((time.perf_counter() - started_s) / STEPS_PER_ROUND)
    return seconds


def _phases(ours: Ours, device: torch.device) -> dict[str, float]:
    watch = Stopwatch(device)
    unwatched, ours.step.phase = ours.step.phase, watch
    for _ in range(STEPS_PER_ROUND):
        ours()
    ours.step.phase = unwatched
    unknown = watch.seconds.keys() - {*PHASES}
    assert not unknown, f"phases without a place in the report: {unknown}"
    return {name: 1000 * watch.seconds[name] / STEPS_PER_ROUND for name in PHASES}


def _trace(ours: Ours, device: torch.device, target: Path) -> None:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        for _ in range(STEPS_PER_ROUND):
            ours()
        wait_for(device)
    with atomic_path(target) as partial:
        profiled.export_chrome_trace(str(partial))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _plain(model: GPT, run: RunConfig) -> list[torch.optim.Optimizer]:
    claimed = claim_parameters(model)
    matrices = [parameter for _, parameter in claimed.pop("matrix")]
    others = [parameter for group in claimed.values() for _, parameter in group]
    return [
        torch.optim.Muon(matrices, lr=run.optim.matrix_lr),
        torch.optim.AdamW(others, lr=run.optim.scalar_lr, fused=True),
    ]


def _compare(what: str, seconds: dict[str, list[float]], run: RunConfig) -> Comparison:
    ratios = [theirs / mine for theirs, mine in zip(seconds["plain"], seconds["ours"], strict=True)]
    step_s = statistics.median(seconds["plain"])
    return Comparison(
        what=what,
        step_ms=1000 * step_s,
        tokens_per_s=run.data.tokens_per_step / step_s,
        ratio=statistics.median(ratios),
        lowest_ratio=min(ratios),
        highest_ratio=max(ratios),
    )
