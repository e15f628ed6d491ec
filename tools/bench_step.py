"""Training tokens/s of our step against plain PyTorch steps of the same model, in one process.

    python tools/bench_step.py [--recipe pocket/default] [--rounds 10] [--set k=v]...

`speedrun bench --compare` on real text, and with more to compare: rounds take turns, A B C A B C,
so that a machine whose speed drifts treats all alike.

    ours                    compiled, Muon batched by shape in the fastest precision
    compiled, torch's Muon  torch.compile, `torch.optim.Muon` + `torch.optim.AdamW`
    eager, torch's Muon     the same without torch.compile
    eager, our Muon         with our optimisers: what compilation alone is worth
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

from bench_pocket import prepare

from speedrun.data.batches import open_batches
from speedrun.measure.bench import (
    STEPS_PER_ROUND,
    Ours,
    Plain,
    build_network,
    count_tables,
    take_turns,
)
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="pocket/default")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    run = load_recipe(arguments.recipe, arguments.overrides)
    batches = open_batches(prepare().train_shards, run)
    ranks, tables = Ranks(), count_tables(run, batches)
    ours = Ours(run, build_network(run, ranks.device, tables), batches, ranks)
    print(ours.step.description)
    contestants: dict[str, Callable[[], None]] = {"ours": ours}
    for compiled, own_muon in ((ours.step.compiled, False), (False, False), (False, True)):
        network = build_network(run, ranks.device, tables)
        plain = Plain(
            run, network, batches, ranks, like=ours.step, compiled=compiled, own_muon=own_muon
        )
        contestants[plain.what.removeprefix("plain torch, ")] = plain
    for advance in contestants.values():
        for _ in range(STEPS_PER_ROUND):  # the first compiles
            advance()
    seconds = take_turns(contestants, arguments.rounds, ranks.device)
    for name, values in seconds.items():
        rate = run.data.tokens_per_step / statistics.median(values)
        ratios = [theirs / mine for theirs, mine in zip(values, seconds["ours"], strict=True)]
        print(
            f"{name:<26} {1000 * statistics.median(values):8.1f} ms/step {rate:10,.0f} tokens/s   "
            f"ours is {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
