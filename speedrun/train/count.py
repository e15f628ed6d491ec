"""Counting n-grams within a share of the budget, on a machine and a text of unknown size.

What counting takes is a constant and a little per token, so a short text's seconds per token never
promise too much for a longer one. That is the whole rule: rehearse on random tokens off the clock,
then count ever longer tails of the text, each as long as the one before says that time allows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speedrun.clock import Clock
from speedrun.config import RunConfig
from speedrun.errors import BudgetError
from speedrun.model.counting import count_ngrams
from speedrun.model.ngram import NgramTable
from speedrun.ranks import Ranks

REHEARSAL_TOKENS = 1 << 14
GROWTH = 40
"""A tail is at most so many times the one before, or finding out would cost more than it saves."""


def rehearse(run: RunConfig, clock: Clock) -> float:
    """Seconds that counting `REHEARSAL_TOKENS` random tokens takes; no training text is read."""
    tokens = np.random.default_rng(0).integers(run.model.vocab_size, size=REHEARSAL_TOKENS)
    started_s = clock.now_s
    count_ngrams(tokens.astype(np.uint16), run.count, run.model.vocab_size)
    return clock.now_s - started_s


def count_in_time(
    table: NgramTable,
    text: Sequence[NDArray[np.uint16]],
    run: RunConfig,
    clock: Clock,
    ranks: Ranks,
    rehearsal_s: float,
) -> int:
    """Fill `table` from the longest tail of `text` that `count.budget_frac` of the time affords.

    Call it in a phase on the budget, where its time is kept if it ends within the budget. Returns
    the tokens counted, the same on all ranks; 0, and an empty table, where even the rehearsal took
    longer than the share.

    Raises
        BudgetError: counting took longer than the rehearsal promised, and the budget is spent.
    """
    clock.keep(clock.elapsed_s)
    stop_s = clock.elapsed_s + run.count.budget_frac * clock.remaining_s
    num_tokens = sum(map(len, text))
    tokens, seconds, counted = REHEARSAL_TOKENS, rehearsal_s, 0
    streams = None
    while counted < num_tokens:
        started_s = clock.elapsed_s
        (growth,) = ranks.broadcast((stop_s - started_s) / max(seconds, 1e-6))
        if growth <= 1:
            break
        fits = tokens * growth >= num_tokens
        tokens = counted = num_tokens if fits else int(tokens * min(growth, GROWTH))
        streams = count_ngrams(_tail(text, tokens), run.count, run.model.vocab_size)
        seconds = clock.elapsed_s - started_s
    if streams is not None:
        table.fill(streams)
    (elapsed_s,) = ranks.broadcast(clock.elapsed_s)
    if elapsed_s > clock.budget_s:
        raise BudgetError(
            f"counting {counted:,} tokens took {seconds:.3f} s, the budget of "
            f"{clock.budget_s:.3f} s is spent; raise --budget or lower count.budget_frac"
        )
    clock.keep(elapsed_s)
    return counted


def _tail(text: Sequence[NDArray[np.uint16]], num_tokens: int) -> NDArray[np.uint16]:
    """The last tokens of a text in parts; only these are read from disk."""
    tail: list[NDArray[np.uint16]] = []
    for part in reversed(text):
        if num_tokens <= 0:
            break
        tail.append(part[-num_tokens:])
        num_tokens -= len(part)
    return np.concatenate(tail[::-1])
