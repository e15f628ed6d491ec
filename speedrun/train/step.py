"""One optimiser step: micro-batches forward and backward, gradients over ranks, update."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from speedrun.config import RunConfig, TrainConfig
from speedrun.errors import ConfigError, TrainError
from speedrun.kernels.choose import choosing, chosen, compiled_on_cpu, way_to_attend
from speedrun.kernels.newton_schulz import matmul_dtype
from speedrun.model.gpt import GPT
from speedrun.optim.muon import Muon
from speedrun.optim.schedule import apply_schedule
from speedrun.quant.fake import fake_weights
from speedrun.ranks import Ranks

PIECE_TOKENS = 2048
"""Tokens of a pass on a CPU, whose cache should hold their logits and scores: 2,048 of the pocket
recipe have 8 MB of each, and were 5 % faster than 1,024, where calls take their time."""


class _Loss(nn.Module):
    """The model's loss as a module, so that other weights can be put in place of its own."""

    def __init__(self, model: GPT, *, recompute: bool) -> None:
        super().__init__()
        self.model, self.recompute = model, recompute

    def forward(self, *batch: Tensor) -> Tensor:
        return self.model.loss(*batch, recompute=self.recompute)


class Step:
    """Callable that advances the model by one step."""

    def __init__(
        self,
        model: GPT,
        optimizers: list[torch.optim.Optimizer],
        run: RunConfig,
        ranks: Ranks,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Choose compilation and precision once, for the whole run; `note` takes log lines.

        Raises
            ConfigError: the global batch cannot be dealt evenly to ranks and micro-batches.
        """
        self.run, self.ranks, self.model = run, ranks, model
        # Names the phases of a step in a trace; `measure.bench` puts a stopwatch here.
        self.phase: Callable[[str], AbstractContextManager[object]] = record_function
        self.optimizers, self.note = optimizers, note
        self.muons = [each for each in optimizers if isinstance(each, Muon)]
        self.small = [
            parameter
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if not group["is_muon"]
        ]
        """Parameters that every rank updates for itself."""
        self.micro_batches = _micro_batches(run, ranks)
        self.dtype = _autocast_dtype(run.train, ranks.device)
        self.compiled = _can_compile(run.train, ranks.device)
        self._loss = _Loss(model, recompute=run.train.recompute)
        self._plain: Callable[..., Tensor] = self._loss
        self._faked: Callable[..., Tensor] = self._loss_of_fakes
        if self.compiled:
            # Two functions, so that training on rounded weights is another graph: a switch inside
            # one would be folded into it as a constant.
            self._plain = torch.compile(self._plain, fullgraph=True, dynamic=False)
            self._faked = torch.compile(self._faked, fullgraph=True, dynamic=False)
            for muon in self.muons:
                muon.compile()
        self.unit = run.model.block_length or run.data.sequence_length
        """Tokens that attend to each other."""
        # In float32: torch 2.13 writes C++ for the bfloat16 one that does not compile.
        on_cpu = ranks.device.type == "cpu" and self.dtype is None
        self.in_one_graph = self.compiled and on_cpu and not run.train.recompute
        self.ways = frozenset[str]()
        """Fast paths beside those that the process has chosen."""
        if self.in_one_graph:
            self._joint = torch.compile(self._gradients, fullgraph=True, dynamic=False)
            self.ways = compiled_on_cpu(self.unit)

    @property
    def description(self) -> str:
        """What was chosen, for the log."""
        precision = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        how = "compiled" if self.compiled else "eager"
        again = ", blocks recomputed" if self.run.train.recompute else ""
        again += ", gradients in one graph" if self.in_one_graph else ""
        with choosing(chosen() | self.ways):
            way = way_to_attend() or "as torch chooses"
        return (
            f"step: {how}, {precision}, {torch.get_num_threads()} threads, {self.ranks.device}, "
            f"{self.micro_batches} micro-batches on each of {self.ranks.world} ranks{again}, "
            f"attention: {way}"
        )

    @property
    def graph_starts(self) -> tuple[float, ...]:
        """Progress at which each of the graphs that the run will use comes into use."""
        start = self.run.quant.qat_start_frac
        return (0.0,) if start in (0, 1) else (0.0, start)

    def __call__(
        self,
        inputs: Tensor,
        targets: Tensor,
        progress: float,
        say: Callable[[], Sequence[float]] = tuple,
    ) -> Tensor:
        """Learn from this rank's share of the batch: inputs and targets (sequences, T) int64.

        Returns the global batch's mean nats and, among several ranks, what rank 0 says when its
        gradients are ready, zeros on others' part: a vector on the device, the same on all ranks.
        Both travel in the message that small gradients are in, so hearing rank 0 costs nothing.

        Raises
            TrainError: not even single sequences fit into memory.
        """
        apply_schedule(self.optimizers, progress, self.run)
        total = self._accumulate(inputs, targets, self._loss_at(progress))
        with self.phase("communication"):
            for muon in self.muons:
                muon.send_gradients()
            told = self._share(total, say)
        with self.phase("optimiser"):
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return told

    @torch.no_grad()
    def measure(self, inputs: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Mean nats of this rank's share, learning nothing: float32 (1,)."""
        loss_of = self._loss_at(progress)
        parts = self._parts(inputs, targets)
        with self._autocast():
            nats = [loss_of(*part, *self.model.read(*part)) for part in parts]
        return torch.stack(nats).mean()[None]

    def _loss_at(self, progress: float) -> Callable[..., Tensor]:
        start = self.run.quant.qat_start_frac
        return self._faked if start < 1 and progress >= start else self._plain

    def _loss_of_fakes(self, *batch: Tensor) -> Tensor:
        fakes = fake_weights(self._loss, self.run.quant)
        return _called_with(self._loss, fakes, batch)

    def _accumulate(
        self, inputs: Tensor, targets: Tensor, loss_of: Callable[..., Tensor]
    ) -> Tensor:
        """Add up gradients over micro-batches; returns this rank's part of the mean nats, (1,).

        What does not fit into memory is begun again in smaller parts. No other rank need know: the
        sum is the same.
        """
        while True:
            try:
                total = torch.zeros(1, device=self.ranks.device)
                learn = self._learn
                if self.in_one_graph and loss_of is self._plain:
                    learn = self._learn_in_one_graph
                share = 1 / (self.micro_batches * self.ranks.world)
                for part in self._parts(inputs, targets):
                    with self.phase("forward"):
                        pieces = self._pieces(*part, *self.model.read(*part))
                    for piece in pieces:
                        total += learn(piece, loss_of, share / len(pieces))
                return total
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                smaller = _even_split(len(inputs), len(inputs) // (2 * self.micro_batches))
                if smaller is None:
                    raise TrainError(
                        f"one sequence of {self.run.data.sequence_length:,} tokens does not fit "
                        "into memory; set train.recompute=true, lower data.sequence_length, or "
                        "train a smaller model"
                    ) from error
            # Here the error, and with it the tensors that its trace holds, are gone.
            self.micro_batches = smaller
            self.note(f"out of memory: now {smaller} micro-batches on each rank, the batch stays")
            self.model.zero_grad(set_to_none=True)
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()

    def _learn(
        self, piece: tuple[Tensor, ...], loss_of: Callable[..., Tensor], share: float
    ) -> Tensor:
        """Add the gradients of a piece's mean nats times `share`, which are returned."""
        with self.phase("forward"), self._autocast():
            loss = loss_of(*piece) * share
        with self.phase("backward"):
            torch.autograd.backward(loss)
        return loss.detach()

    def _learn_in_one_graph(
        self, piece: tuple[Tensor, ...], loss_of: Callable[..., Tensor], share: float
    ) -> Tensor:
        """The same; nothing is computed twice because one graph ended and another began."""
        # A table made inside the transform would be of the transform's own kind of tensor.
        self.model.rotary(self.unit, self.ranks.device)
        parameters = dict(self._loss.named_parameters())
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        with self.phase("backward"), self._autocast(), choosing(chosen() | self.ways):
            gradients, loss = self._joint(weights, share, *piece)
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    parameter.grad.add_(gradients[name])
                elif parameter.numel():
                    parameter.grad = gradients[name]
        result: Tensor = loss
        return result

    def _gradients(
        self, weights: dict[str, Tensor], share: float, *piece: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        def loss_of(weights: dict[str, Tensor]) -> Tensor:
            return _called_with(self._loss, weights, piece) * share

        found: tuple[dict[str, Tensor], Tensor] = torch.func.grad_and_value(loss_of)(weights)
        return found

    def _share(self, total: Tensor, say: Callable[[], Sequence[float]]) -> Tensor:
        """Sum over ranks what is not Muon's in one message, and clip; returns what all are told."""
        grads = [parameter.grad for parameter in self.small if parameter.grad is not None]
        limit = self.run.optim.grad_clip
        mine = [grad for muon in self.muons for grad in muon.gradients()] if limit else []
        squares = _squares(mine, self.ranks.device)
        if self.ranks.world > 1:
            word = torch.tensor(say()).to(self.ranks.device, non_blocking=True)
            head = torch.cat((total, word if self.ranks.is_main else 0 * word, squares))
            flat = torch.cat((head, *(grad.flatten() for grad in grads)))
            self.ranks.total(flat)
            sizes = [len(head) - 1, 1, *(grad.numel() for grad in grads)]
            total, squares, *sums = torch.split(flat, sizes)
            # Copied, so that the message does not live as long as the longest-lived of its parts.
            torch._foreach_copy_(grads, [s.view_as(g) for s, g in zip(sums, grads, strict=True)])
            total = total.clone()
        if limit:
            norm = (squares + _squares(grads, self.ranks.device)).sqrt()
            scale = (limit / (norm + 1e-6)).clamp_max(1)[0]
            torch._foreach_mul_(mine + grads, scale)
        return total

    def _parts(self, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of one shape, so that one compiled graph serves all."""
        parts = inputs.chunk(self.micro_batches), targets.chunk(self.micro_batches)
        return zip(*parts, strict=True)

    def _pieces(self, inputs: Tensor, targets: Tensor, *facts: Tensor) -> list[tuple[Tensor, ...]]:
        """A part cut between blocks, if it is for a cache; nothing but facts connects blocks."""
        rows = inputs.numel() // self.unit
        largest = PIECE_TOKENS // self.unit if self.in_one_graph else rows
        num = _even_split(rows, max(largest, 1)) or 1
        blocks = inputs.reshape(rows, -1), targets.reshape(rows, -1)
        return list(zip(*(each.chunk(num) for each in (*blocks, *facts)), strict=True))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=self.dtype)


def _called_with(
    module: nn.Module, weights: dict[str, Tensor], arguments: tuple[Tensor, ...]
) -> Tensor:
    """What a module makes of its arguments with other weights.

    Ties are left alone because torch would look for them among counted tables, too, and a compiled
    graph that has seen empty ones is compiled anew once they are counted, on the clock.
    """
    result: Tensor = torch.func.functional_call(module, weights, arguments, tie_weights=False)
    return result


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Sum of the squares of all elements, (1,)."""
    if not tensors:
        return torch.zeros(1, device=device)
    return torch.stack(torch._foreach_norm(tensors)).square().sum()[None]


def _is_out_of_memory(error: RuntimeError) -> bool:
    # A GPU's allocator has an exception of its own, the CPU's has only its words.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _micro_batches(run: RunConfig, ranks: Ranks) -> int:
    sequences = run.data.tokens_per_step // run.data.sequence_length
    per_rank, rest = divmod(sequences, ranks.world)
    if rest:
        raise ConfigError(
            f"data.tokens_per_step = {run.data.tokens_per_step:,} is {sequences:,} sequences, "
            f"which {ranks.world} ranks cannot share evenly"
        )
    largest = max(run.data.micro_batch_tokens // run.data.sequence_length, 1)
    parts = _even_split(per_rank, largest)
    assert parts is not None
    return parts


def _even_split(sequences: int, largest: int) -> int | None:
    """Fewest parts of one size that have at most `largest` sequences; None if that is none."""
    sizes = (size for size in range(min(largest, sequences), 0, -1) if sequences % size == 0)
    size = next(sizes, None)
    return size and sequences // size


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
