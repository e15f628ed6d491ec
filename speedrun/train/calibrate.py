"""Watch a trained network read training text: what rounding needs to know, on the clock.

Validation text has no way in: shards are opened here, by name, and a file that is not of the
training split is refused; what was read is noted, so that packing can deal it again and compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        digest.update(batches.at(step)[0].numpy().astype("<u2").tobytes())
    return digest.hexdigest()


def calibrate(
    model: GPT,
    batch_at: Callable[[int], tuple[Tensor, Tensor]],
    *,
    source: Literal["training", "generated"],
    first_step: int = 0,
    num_batches: int,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Calibration:
    """Read batches until there are enough of them or `may_go_on` says stop.

    The gradients whose squares are summed are those of targets drawn from the network's own
    predictions where it has no tables, so that their mean square is the curvature of the loss
    (the Fisher information) and not the text's surprise.

    Raises
        BudgetError: not one batch was read.
    """
    device = next(model.parameters()).device
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sums: dict[str, Tensor] = {}
    squares = {
        name: torch.zeros(parameter.shape[:-1], device=device)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
    }
    lookups: dict[str, Tensor] = {}
    pull = torch.zeros((), device=device)
    digest = hashlib.sha256()
    generator = torch.Generator(device).manual_seed(_SEED)
    done = num_tokens = 0
    was_training = model.training
    model.eval()
    with _watch(model, names, sums, lookups) as heads:
        while done < num_batches and may_go_on():
            ids, targets = batch_at(first_step + done)
            digest.update(ids.numpy().astype("<u2").tobytes())
            ids, targets = ids.to(device), targets.to(device)
            loss = model.loss(ids, targets, *model.read(ids, targets))
            if model.ngram is None and model.match is None:
                logits = softcap(heads[-1].float(), model.config.logit_softcap)
                chances = logits.detach().softmax(-1)
                drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
                loss = F.cross_entropy(logits, drawn)
            output = heads.pop()
            output.retain_grad()
            # Summed over tokens, so that each token's gradient is its own.
            torch.autograd.backward(loss * ids.numel())
            if output.grad is not None:
                pull += output.grad.square().sum()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and name in squares:
                    # Of so many tokens; they add up as independent draws do.
                    squares[name] += parameter.grad.square().sum(-1)
            model.zero_grad(set_to_none=True)
            done += 1
            num_tokens += ids.numel()
    model.train(was_training)
    if not done:
        raise BudgetError("no time was left for a batch of calibration; raise quant.calibration_s")
    grams = {name: total / num_tokens for name, total in sums.items()}
    for name, total in lookups.items():
        # A tied table is read twice: as rows of the head, and as what enters the first block.
        head = grams[name] * (pull / num_tokens) if name in grams else 0.0
        grams[name] = head + total / num_tokens
    return Calibration(
        # Queries, keys and values read the same input: one gram, three names.
        grams={name: gram.cpu() for name, gram in (grams | _shared(model, names, grams)).items()},
        squares={name: (total / num_tokens).cpu() for name, total in squares.items()},
        source=source,
        first_step=first_step,
        num_batches=done,
        num_tokens=num_tokens,
        digest=digest.hexdigest(),
    )


def calibrate_in_time(
    model: GPT, batches: Batches, run: RunConfig, clock: Clock, *, first_step: int
) -> Calibration:
    """Calibrate on training batches inside what is left of the budget, and book it.

    No batch starts that might outlast the budget; one that does all the same is booked as
    discarded, and so is whatever follows the last one that was kept.

    Raises
        BudgetError: the budget does not hold one batch.
    """
    slowest_s = started_s = 0.0

    def may_go_on() -> bool:
        nonlocal slowest_s, started_s
        elapsed_s = clock.elapsed_s
        if started_s:
            slowest_s = max(slowest_s, elapsed_s - started_s)
        started_s = elapsed_s
        return clock.remaining_s > 1.2 * slowest_s

    with clock.phase("calibrate", on_budget=True) as booked:
        found = calibrate(
            model,
            batches.at,
            source="training",
            first_step=first_step,
            num_batches=run.quant.calibration_batches,
            may_go_on=may_go_on,
        )
        booked["batches"], booked["tokens"] = found.num_batches, found.num_tokens
    return found


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


@contextmanager
def _watch(
    model: GPT, names: dict[int, str], sums: dict[str, Tensor], lookups: dict[str, Tensor]
) -> Iterator[list[Tensor]]:
    """Sum x x^T at every matrix product and g g^T of every lookup while the block runs.

    Yields the list to which the head's outputs are added. g is the gradient at what was looked up:
    it says along which channels an error in a row hurts.
    """
    heads: list[Tensor] = []

    def add(name: str, vectors: Tensor, into: dict[str, Tensor]) -> None:
        rows = vectors.detach().flatten(0, -2).float()
        total = rows.T @ rows
        into[name] = into[name] + total if name in into else total

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, arguments: add(name, arguments[0], sums)

    def watch_lookup(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            # torch leaves the argument's type open.
            output.register_hook(lambda gradient: add(name, gradient, lookups))  # type: ignore[no-untyped-call]

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
        add(head_name, hidden, sums)
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
