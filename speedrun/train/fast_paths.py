"""Measure what is faster on this device, before the clock starts, and take it for the whole run.

A fast path is taken where it computes what its plain twin computes and is faster by `MARGIN`, both
compiled, forwards and backwards, on the shapes of this run. Nobody's figures are believed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speedrun.config import RunConfig
from speedrun.errors import ConfigError
from speedrun.kernels import choose
from speedrun.kernels.attention import causal_attention, open_way
from speedrun.kernels.cross_entropy import LARGEST_CAP, head_cross_entropy
from speedrun.kernels.exclusive import exclude_own_value
from speedrun.kernels.mlp import relu2_mlp
from speedrun.kernels.newton_schulz import matmul_dtype, newton_schulz
from speedrun.kernels.rms_norm import mix_and_norm
from speedrun.model.mlp import SLOPES
from speedrun.ranks import Ranks

MARGIN = 1.05
"""What is less than 5 % faster is not worth another way of rounding."""
LARGEST_DIFFERENCE = 0.02
"""Between fast and plain, relative to the norm of plain: five times what bfloat16 rounds away."""
ROUNDS, CALLS = 5, 5

_Call = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One operation of the step, and the fast paths that could compute it."""

    name: str
    call: _Call
    inputs: tuple[Tensor, ...]
    ways: tuple[str, ...]
    """Fast paths to compare with the plain twin, one at a time."""
    learns: bool = True
    """Whether it has a backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a trial of one fast path found."""

    way: str
    ratio: float = 0.0
    """Seconds of the plain twin over those of the fast path."""
    difference: float = 0.0
    """From the plain twin, the largest of all results and gradients, relative to its norm."""
    failure: str = ""
    """Why there is no ratio: it does not run here, or computes something else."""

    def __str__(self) -> str:
        return f"{self.way} {self.failure or f'{self.ratio:.2f} x'}"


def settle_fast_paths(run: RunConfig, ranks: Ranks) -> list[str]:
    """Choose for this process what `train.kernels` allows; returns lines for the log.

    All ranks measure and rank 0's findings count, so that all compute alike.

    Raises
        ConfigError: kernels are asked for by force, or an 8-bit head, and cannot run here.
    """
    setting, device = run.train.kernels, ranks.device
    choose.choose(frozenset())
    missing = _missing(device)
    if missing:
        if setting == "on" or run.train.fp8_head:
            key = "kernels = 'on'" if setting == "on" else "fp8_head = true"
            raise ConfigError(f"train.{key} cannot be: {missing}; set it back to its default")
        return [f"kernels: plain ({missing}); attention: torch's choice"]
    lines: list[str] = []
    taken: set[str] = set()
    for trial in trials(run, ranks):
        findings = measure(trial)
        best = _best(trial, findings, by_force=setting == "on")
        # Every rank obeys rank 0: graphs that differ would wait for each other differently.
        (index,) = ranks.broadcast(float(trial.ways.index(best)) if best else -1.0)
        if index >= 0:
            taken.add(trial.ways[int(index)])
        lines.append(
            f"kernels: {trial.name}: {trial.ways[int(index)] if index >= 0 else 'plain'} "
            f"({', '.join(map(str, findings))})"
        )
    if run.train.fp8_head:
        _check_fp8(run, device)
        taken = (taken - {"head"}) | {"fp8_head"}
        lines.append("kernels: fp8_head, as train.fp8_head asks")
    choose.choose(frozenset(taken))
    way = next((name for name in choose.ATTENTION if name in taken), "")
    open_way(way, _attended(run), device)
    return lines


def _missing(device: torch.device) -> str:
    if device.type != "cuda":
        return "no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    return ""


def trials(run: RunConfig, ranks: Ranks) -> Iterator[Trial]:
    """The operations of this run's step, with inputs of a micro-batch's shape."""
    model, device = run.model, ranks.device
    dtype = torch.float32 if run.train.precision == "float32" else matmul_dtype(ranks.device.type)
    rows = min(run.data.micro_batch_tokens, run.data.tokens_per_step // ranks.world)
    width, hidden = model.width, model.mlp_hidden
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=device) * scale
        return drawn.to(dtype)

    if not (model.ngram_order or model.match_order) and model.logit_softcap <= LARGEST_CAP:
        targets = torch.randint(model.vocab_size, (rows,), generator=generator, device=device)
        yield Trial(
            name="head and loss",
            call=lambda x, w: head_cross_entropy(x, w, targets, model.logit_softcap),
            inputs=(draw(rows, width), draw(model.vocab_size, width, scale=0.1)),
            ways=("cross_entropy", "head"),
        )
    slope = SLOPES[model.mlp_activation]
    yield Trial(
        name="MLP",
        call=lambda x, fc, proj: relu2_mlp(x, fc, proj, slope),
        inputs=(
            draw(rows, width),
            draw(hidden, width, scale=width**-0.5),
            draw(width, hidden, scale=hidden**-0.5),
        ),
        ways=("mlp",),
    )
    yield Trial(
        name="residual mix and norm",
        call=lambda x, other, keep, take: mix_and_norm(x, other, keep, take, 0.5),
        inputs=(draw(rows, width), draw(rows, width), draw(width), draw(width)),
        ways=("mixed_norm",),
    )
    tokens = _attended(run)
    heads = (max(rows // tokens, 1), tokens, model.num_heads, model.head_width)
    values = (*heads[:2], model.num_kv_heads, model.head_width)
    if model.xsa_layers:
        yield Trial(
            name="exclusive attention",
            call=lambda y, v: exclude_own_value(y.transpose(1, 2), v),
            # As attention hands them over.
            inputs=(draw(heads[0], heads[2], tokens, heads[3]), draw(*values)),
            ways=("exclusive",),
        )
    yield Trial(
        name="Newton-Schulz",
        call=lambda x: newton_schulz(x, run.optim.newton_schulz_steps),
        inputs=(draw(model.num_layers, hidden, width),),
        ways=("symmetric",),
        learns=False,
    )
    yield Trial(
        name="attention",
        call=causal_attention,
        inputs=(draw(*heads), draw(*values), draw(*values)),
        ways=choose.ATTENTION,
    )


def _attended(run: RunConfig) -> int:
    """Tokens that attention sees at once."""
    return run.model.block_length or run.data.sequence_length


def measure(trial: Trial, *, rounds: int = ROUNDS, calls: int = CALLS) -> list[Finding]:
    """Compare each way with the plain twin, by turns; what does not run or agree is named."""
    # Contestants are one function to the compiler, which keeps a few graphs of each.
    torch.compiler.reset()
    findings = []
    plain = _Contestant(trial, "")
    for way in trial.ways:
        try:
            fast = _Contestant(trial, way)
            difference = _difference(fast.results, plain.results)
            if not difference <= LARGEST_DIFFERENCE:
                failure = f"differs by {difference:.2g}"
                findings.append(Finding(way=way, difference=difference, failure=failure))
                continue
            ratios = []
            for _ in range(rounds):
                ratios.append(plain.seconds(calls) / fast.seconds(calls))
        # A package, a driver, a compiler: whatever keeps it from running here keeps it out.
        except Exception as error:  # noqa: BLE001
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            findings.append(Finding(way=way, failure=f"cannot run: {reason:.80}"))
            continue
        findings.append(Finding(way=way, ratio=statistics.median(ratios), difference=difference))
    return findings


class _Contestant:
    """A trial's call, compiled with one fast path chosen or none."""

    def __init__(self, trial: Trial, way: str) -> None:
        self._names = frozenset({way} - {""})
        self._way, self._trial = way, trial
        self._inputs = [each.detach().requires_grad_(trial.learns) for each in trial.inputs]
        self._call: _Call = torch.compile(trial.call, fullgraph=True, dynamic=False)
        self.results = self._run()

    def _run(self) -> list[Tensor]:
        with choose.choosing(self._names), torch.set_grad_enabled(self._trial.learns):
            if self._trial.name == "attention":
                query = self._inputs[0]
                open_way(self._way, query.size(1), query.device)
            results = self._call(*self._inputs)
            results = list(results) if isinstance(results, tuple) else [results]
            if not self._trial.learns:
                return results
            upstream = [torch.full_like(each, 0.5) for each in results]
            return [*results, *torch.autograd.grad(results, self._inputs, upstream)]

    def seconds(self, calls: int) -> float:
        """Of one call, on a device that has nothing else to do."""
        device = self._inputs[0].device
        _wait(device)
        started_s = time.perf_counter()
        for _ in range(calls):
            self._run()
        _wait(device)
        return (time.perf_counter() - started_s) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    largest = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        exact = theirs.detach().float()
        share = float((mine.detach().float() - exact).norm() / exact.norm())
        if not share <= largest:  # so that what is not a number counts
            largest = share
    return largest


def _best(trial: Trial, findings: Sequence[Finding], *, by_force: bool) -> str:
    """The fastest way that is worth it: attention's best of all, a kernel only with a margin."""
    able = [finding for finding in findings if not finding.failure]
    if by_force and trial.name != "attention" and not able:
        raise ConfigError(
            f"train.kernels = 'on', but for {trial.name} none runs here: "
            f"{'; '.join(map(str, findings))}; set train.kernels=auto"
        )
    best = max(able, key=lambda finding: finding.ratio, default=None)
    least = 1.0 if trial.name == "attention" else 0.0 if by_force else MARGIN
    return best.way if best and best.ratio > least else ""


def _check_fp8(run: RunConfig, device: torch.device) -> None:
    if torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            "train.fp8_head needs a GPU with 8-bit products (compute capability 8.9 or more), "
            f"this is {torch.cuda.get_device_capability(device)}; leave it out"
        )
    for key in ("vocab_size", "width"):
        if getattr(run.model, key) % 16:
            raise ConfigError(
                f"train.fp8_head needs model.{key} to be a multiple of 16, found "
                f"{getattr(run.model, key):,}"
            )
