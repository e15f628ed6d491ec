"""One optimiser step: micro-batches forward and backward, gradients over ranks, update."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.profiler import record_function

from speedrun.config import RunConfig, TrainConfig
from speedrun.errors import ConfigError
from speedrun.kernels.newton_schulz import matmul_dtype
from speedrun.model.gpt import GPT
from speedrun.optim.schedule import apply_schedule
from speedrun.ranks import Ranks


class Step:
    """Callable that advances the model by one step; returns the global batch's mean nats."""

    def __init__(
        self, model: GPT, optimizers: list[torch.optim.Optimizer], run: RunConfig, ranks: Ranks
    ) -> None:
        """Choose compilation and precision once, for the whole run.

        Raises
            ConfigError: the global batch cannot be dealt evenly to ranks and micro-batches.
        """
        self.run, self.ranks, self.model = run, ranks, model
        self.optimizers = optimizers
        # Names the phases of a step in a trace; `measure.bench` puts a stopwatch here.
        self.phase: Callable[[str], AbstractContextManager[object]] = record_function
        self.parameters = list(model.parameters())
        self.micro_batches = _micro_batches(run, ranks)
        self.dtype = _autocast_dtype(run.train, ranks.device)
        self.compiled = _can_compile(run.train, ranks.device)
        self.loss = (
            torch.compile(model.loss, fullgraph=True, dynamic=False)
            if self.compiled
            else model.loss
        )

    @property
    def description(self) -> str:
        """What was chosen, for the log."""
        precision = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        how = "compiled" if self.compiled else "eager"
        return (
            f"step: {how}, {precision}, {torch.get_num_threads()} threads, {self.ranks.device}, "
            f"{self.micro_batches} micro-batches on each of {self.ranks.world} ranks"
        )

    def __call__(self, inputs: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Learn from this rank's share of the batch: inputs and targets (sequences, T) int64."""
        apply_schedule(self.optimizers, progress, self.run)
        total = torch.zeros((), device=self.ranks.device)
        for part in zip(
            inputs.chunk(self.micro_batches), targets.chunk(self.micro_batches), strict=True
        ):
            with self.phase("forward"), self._autocast():
                loss = self.loss(*part, *self.model.read(*part)) / self.micro_batches
            with self.phase("backward"):
                torch.autograd.backward(loss)
            total += loss.detach()
        with self.phase("communication"):
            self.ranks.average([total, *(p.grad for p in self.parameters if p.grad is not None)])
        with self.phase("optimiser"):
            if self.run.optim.grad_clip:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.run.optim.grad_clip)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return total

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=self.dtype)


def _micro_batches(run: RunConfig, ranks: Ranks) -> int:
    sequences = run.data.tokens_per_step // run.data.sequence_length
    per_rank, rest = divmod(sequences, ranks.world)
    if rest:
        raise ConfigError(
            f"data.tokens_per_step = {run.data.tokens_per_step:,} is {sequences:,} sequences, "
            f"which {ranks.world} ranks cannot share evenly"
        )
    largest = max(run.data.micro_batch_tokens // run.data.sequence_length, 1)
    # The smallest even split: every micro-batch has one shape, so one compiled graph serves all.
    return next(n for n in range(1, per_rank + 1) if per_rank % n == 0 and per_rank // n <= largest)


def _autocast_dtype(train: TrainConfig, device: torch.device) -> torch.dtype | None:
    if train.precision == "auto":
        fastest = matmul_dtype(device.type)
        return None if fastest is torch.float32 else fastest
    return torch.bfloat16 if train.precision == "bfloat16" else None


def _can_compile(train: TrainConfig, device: torch.device) -> bool:
    if train.compile == "no":
        return False
    compiler = os.environ.get("CXX", "").split() or ["g++"]
    found = device.type == "cuda" or any(map(shutil.which, (compiler[0], "clang++")))
    if train.compile == "yes" and not found:
        raise ConfigError(
            "train.compile = 'yes' needs a C++ compiler on a CPU, none is on the PATH; "
            "install g++ or set train.compile=no"
        )
    return found
