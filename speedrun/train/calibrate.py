"""Watch a trained network read training text: what rounding needs to know, on the clock.

Validation text has no way in: shards are opened here, by name, and a file that is not of the
training split is refused; what was read is noted, so that packing can deal it again and compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.data.batches import Batches, open_batches
from speedrun.errors import BudgetError, DataError
from speedrun.kernels.cross_entropy import softcap
from speedrun.model.attention import Attention
from speedrun.model.embedding import Embedding
from speedrun.model.gpt import GPT
from speedrun.model.linear import Linear
from speedrun.quant.calibration import Calibration

_GENERATED_TOKENS = 64
_SEED = 20_261_130  # of the targets that the network draws for itself


def open_training_batches(shards: Sequence[Path], run: RunConfig) -> Batches:
    """Batches for calibration, which must be training text.

    Raises
        DataError: a shard is not of the training split.
    """
    for path in shards:
        # The same pattern by which training finds its shards.
        if not path.match("*_train_*.bin"):
            raise DataError(
                f"{path} is not a training shard (*_train_*.bin); calibration on validation text "
                "would leak it into the weights"
            )
    return open_batches(shards, run)


def digest_of(batches: Batches, first_step: int, num_batches: int) -> str:
    """SHA-256 of the tokens that a calibration with these numbers reads."""
    digest = hashlib.sha256()
    for step in range(first_step, first_step + num_batches):
        digest.update(_as_bytes(batches.at(step)[0]))
    return digest.hexdigest()


def calibrate(
    model: GPT,
    batch_at: Callable[[int], tuple[Tensor, Tensor]],
    *,
    source: Literal["training", "generated"],
    first_step: int = 0,
    num_batches: int,
    may_start: Callable[[], bool] = lambda: True,
    may_keep: Callable[[], bool] = lambda: True,
) -> Calibration:
    """Read batches until there are enough of them, or one may not start, or not be kept.

    The gradients whose squares are summed are those of targets drawn from the network's own
    predictions where it has no tables, so that their mean square is the curvature of the loss
    (the Fisher information) and not the text's surprise.

    Raises
        BudgetError: not one batch was read.
    """
    device = next(model.parameters()).device
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    total = _Sums()
    digest = hashlib.sha256()
    generator = torch.Generator(device).manual_seed(_SEED)
    done = 0
    was_training = model.training
    model.eval()
    while done < num_batches and may_start():
        ids, targets = batch_at(first_step + done)
        batch = _Sums(num_tokens=ids.numel())
        with _watch(model, names, batch) as heads:
            inputs, wanted = ids.to(device), targets.to(device)
            loss = model.loss(inputs, wanted, *model.read(inputs, wanted))
            output = heads[-1]
            if model.ngram is None and model.match is None:
                logits = softcap(output.float(), model.config.logit_softcap)
                chances = logits.detach().softmax(-1)
                drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
                loss = F.cross_entropy(logits, drawn)
            output.retain_grad()
            # Summed over tokens, so that each token's gradient is its own.
            torch.autograd.backward(loss * ids.numel())
        if output.grad is not None:
            batch.pull = float(output.grad.square().sum())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and parameter.ndim >= 2:
                batch.squares[name] = parameter.grad.square().sum(-1)
        model.zero_grad(set_to_none=True)
        if not may_keep():
            break
        total.add(batch)
        digest.update(_as_bytes(ids))
        done += 1
    model.train(was_training)
    if not done:
        raise BudgetError("no time was left for a batch of calibration; raise quant.calibration_s")
    grams = {name: gram / total.num_tokens for name, gram in total.inputs.items()}
    for name, gram in total.lookups.items():
        # A tied table is read twice: as rows of the head, and as what enters the first block.
        head = grams[name] * (total.pull / total.num_tokens) if name in grams else 0.0
        grams[name] = head + gram / total.num_tokens
    grams |= _shared(model, names, grams)
    return Calibration(
        grams={name: gram.cpu() for name, gram in grams.items()},
        squares={name: (sums / total.num_tokens).cpu() for name, sums in total.squares.items()},
        source=source,
        first_step=first_step,
        num_batches=done,
        num_tokens=total.num_tokens,
        digest=digest.hexdigest(),
    )


def calibrate_in_time(
    model: GPT, shards: Sequence[Path], run: RunConfig, clock: Clock, *, first_step: int
) -> Calibration:
    """Calibrate inside what is left of the budget, and book it.

    No batch starts that might outlast the budget; one that does all the same is thrown away, with
    its time booked as discarded.

    Raises
        BudgetError: the budget does not hold one batch.
        DataError: a shard is not of the training split.
    """
    batches = open_training_batches(shards, run)
    slowest_s = started_s = 0.0

    def may_start() -> bool:
        nonlocal started_s
        started_s = clock.elapsed_s
        return clock.remaining_s > slowest_s

    def may_keep() -> bool:
        nonlocal slowest_s
        elapsed_s = clock.elapsed_s
        slowest_s = max(slowest_s, elapsed_s - started_s)
        if elapsed_s > clock.budget_s:
            return False
        clock.keep(elapsed_s)
        return True

    batch_at: Callable[[int], tuple[Tensor, Tensor]] = batches.at
    with clock.phase("calibrate", on_budget=True) as booked:
        clock.keep(clock.elapsed_s)
        if run.quant.calibration == "generated":
            batch_at = _generated(model, run)
        found = calibrate(
            model,
            batch_at,
            source=run.quant.calibration,
            first_step=first_step,
            num_batches=run.quant.calibration_batches,
            may_start=may_start,
            may_keep=may_keep,
        )
        booked["batches"], booked["tokens"] = found.num_batches, found.num_tokens
    return found


def check_calibration(found: Calibration, shards: Sequence[Path], run: RunConfig) -> None:
    """Deal the batches again that a calibration names, and compare what it read.

    Raises
        DataError: it did not read these batches of these shards, or a shard is not for training.
    """
    batches = open_training_batches(shards, run)
    if found.source == "generated":
        return
    if digest_of(batches, found.first_step, found.num_batches) != found.digest:
        raise DataError(
            f"the calibration says that it read steps {found.first_step:,} to "
            f"{found.first_step + found.num_batches - 1:,} of the training text, and that text has "
            "another SHA-256; calibrate again on this dataset's training shards"
        )


@torch.no_grad()
def generate(model: GPT, *, sequences: int, length: int, seed: int = 42) -> Tensor:
    """Text that the network writes itself, (sequences, length) int64, from uniform first tokens.

    Source
        Self-generated calibration at temperature 0.8: parameter-golf PR #1019.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    vocab = model.config.vocab_size
    ids = torch.randint(vocab, (sequences, 1), generator=generator, device=device)
    while ids.size(1) < length:
        last = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        last[:, -1] = True
        chances = (model(ids, last) / 0.8).softmax(-1)
        ids = torch.cat((ids, torch.multinomial(chances, 1, generator=generator)), dim=1)
    return ids


def _as_bytes(ids: Tensor) -> bytes:
    return ids.cpu().numpy().astype("<u2").tobytes()


def _generated(model: GPT, run: RunConfig) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of the network's own text, of about the size of one of training's micro-batches.

    Sequences are short: each token runs the network over all before it, since it keeps no cache.
    """
    length = run.model.block_length or min(run.data.sequence_length, _GENERATED_TOKENS)
    sequences = max(run.data.micro_batch_tokens // length, 1)

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        ids = generate(model, sequences=sequences, length=length + 1, seed=step)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return batch_at


@dataclass
class _Sums:
    """What batches add up to, by the name of a weight; on the network's device."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """x x^T over the inputs x of a product."""
    lookups: dict[str, Tensor] = field(default_factory=dict)
    """g g^T over the gradients g at what was looked up."""
    squares: dict[str, Tensor] = field(default_factory=dict)
    """Squared gradients of a weight, summed over columns."""
    pull: float = 0.0
    """Squared gradients of the head's outputs."""
    num_tokens: int = 0

    def add(self, other: _Sums) -> None:
        for mine, theirs in (
            (self.inputs, other.inputs),
            (self.lookups, other.lookups),
            (self.squares, other.squares),
        ):
            for name, value in theirs.items():
                mine[name] = mine[name] + value if name in mine else value
        self.pull += other.pull
        self.num_tokens += other.num_tokens


@contextmanager
def _watch(model: GPT, names: dict[int, str], sums: _Sums) -> Iterator[list[Tensor]]:
    """Sum over the inputs of every matrix product and the gradients of every lookup in the block.

    Yields the list to which the head's outputs are added. The gradient at what was looked up says
    along which channels an error in a row hurts.
    """
    heads: list[Tensor] = []

    def add(name: str, vectors: Tensor, into: dict[str, Tensor]) -> None:
        rows = vectors.detach().flatten(0, -2).float()
        total = rows.T @ rows
        into[name] = into[name] + total if name in into else total

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, arguments: add(name, arguments[0], sums.inputs)

    def watch_lookup(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # torch leaves the argument's type open.
            output.register_hook(lambda gradient: add(name, gradient, sums.lookups))  # type: ignore[no-untyped-call]

        return hook

    hooks = []
    for module in model.modules():
        if isinstance(module, Linear):
            hooks.append(module.register_forward_pre_hook(watch(names[id(module.weight)])))
        elif isinstance(module, Attention):
            # The three projections are one product: their own modules are never called.
            name = names[id(module.c_q.weight)]
            hooks.append(module.register_forward_pre_hook(watch(name)))
        elif isinstance(module, Embedding):
            name = names[id(module.weight)]
            hooks.append(module.register_forward_hook(watch_lookup(name)))
    head_name = names[id(model.tok_emb.weight if model.lm_head is None else model.lm_head.weight)]
    product = model.head

    def head(hidden: Tensor) -> Tensor:
        add(head_name, hidden, sums.inputs)
        heads.append(product(hidden))
        return heads[-1]

    # The head is a method and has no hook: an attribute of the same name comes before it.
    model.head = head  # type: ignore[method-assign]
    try:
        yield heads
    finally:
        del model.head
        for hook in hooks:
            hook.remove()


def _shared(model: GPT, names: dict[int, str], grams: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        names[id(other.weight)]: grams[names[id(module.c_q.weight)]]
        for module in model.modules()
        if isinstance(module, Attention)
        for other in (module.c_k, module.c_v)
    }
