"""Training tokens/s of our step against plain PyTorch steps of the same model, in one process.

    python tools/bench_step.py [--recipe pocket/default] [--rounds 10] [--set k=v]...

Rounds take turns, A B C A B C, so that a machine whose speed drifts treats all alike.

    ours            compiled forward and backward, Muon batched by shape in the fastest precision
    plain           eager, `torch.optim.Muon` + `torch.optim.AdamW`
    plain, our Muon eager, with our optimisers: what compilation alone is worth
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from bench_pocket import prepare

from speedrun.data.batches import open_batches
from speedrun.model.counting import count_ngrams
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.optim.groups import build_optimizers, claim_parameters
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe
from speedrun.train.step import Step

STEPS_PER_ROUND = 3


def plain_step(model: GPT, optimizers: list[torch.optim.Optimizer]) -> Callable[..., object]:
    """What anybody would write: facts, loss, backward, update."""

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        model.loss(inputs, targets, *model.read(inputs, targets)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="pocket/default")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    run = load_recipe(arguments.recipe, arguments.overrides)
    batches = open_batches(prepare().train_shards, run)

    def fresh() -> GPT:
        model = build_model(run.model, seed=run.seed)
        if model.ngram is not None:
            text = np.concatenate(batches.earlier)[-4_000_000:]
            model.ngram.fill(count_ngrams(text, run.count, run.model.vocab_size))
        return model

    ours, plain, mixed = fresh(), fresh(), fresh()
    step = Step(ours, build_optimizers(ours, run.optim), run, Ranks())
    claimed = claim_parameters(plain)
    matrices = [parameter for _, parameter in claimed.pop("matrix")]
    others = [parameter for group in claimed.values() for _, parameter in group]
    contestants: dict[str, Callable[..., object]] = {
        "ours": lambda inputs, targets: step(inputs, targets, 0.5),
        "plain": plain_step(
            plain, [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]
        ),
        "plain, our Muon": plain_step(mixed, build_optimizers(mixed, run.optim)),
    }
    print(step.description)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(arguments.rounds + 1):
        for name, advance in contestants.items():
            started = time.perf_counter()
            for i in range(STEPS_PER_ROUND):
                advance(*batches.at(number * STEPS_PER_ROUND + i))
            if number:  # the first round compiles
                seconds[name].append((time.perf_counter() - started) / STEPS_PER_ROUND)
    for name, values in seconds.items():
        rate = run.data.tokens_per_step / statistics.median(values)
        ratios = [theirs / mine for theirs, mine in zip(values, seconds["ours"], strict=True)]
        print(
            f"{name:<16} {1000 * statistics.median(values):8.1f} ms/step {rate:10,.0f} tokens/s   "
            f"ours is {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
