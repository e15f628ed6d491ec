"""Which fast paths this process takes. Everything starts plain; `train.fast_paths` decides once
for a GPU, `compiled_on_cpu` says what `train.step` adds without one.

The plain twins in this room run on a CPU, in evaluation and wherever nothing faster was measured.
`kernels.fused` holds the Triton code; no module of it is imported before it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

KERNELS = ("cross_entropy", "head", "mlp", "mixed_norm", "exclusive", "symmetric", "fp8_head")
"""What may be chosen, beside one of `ATTENTION`."""
ATTENTION = ("cudnn", "flash", "FA3", "FA4", "flex")
"""Ways to compute attention; none of them leaves the choice to torch. See `attention`."""
ON_CPU = ("strips",)
"""A way for short sequences and no GPU, that torch does not have."""
LONGEST_IN_STRIPS = 512
"""Tokens up to which a CPU writes the scores out: those of a micro-batch should fit its cache."""

# A frozen set that is replaced, never changed: compiled graphs guard on what it holds.
_chosen: frozenset[str] = frozenset()


def is_chosen(name: str) -> bool:
    """Whether to take the fast path `name`."""
    return name in _chosen


def is_chosen_to_learn(name: str) -> bool:
    """The same where gradients are recorded: evaluation computes what the judge will compute."""
    return name in _chosen and torch.is_grad_enabled()


def way_to_attend() -> str:
    """The chosen one of `ATTENTION` and `ON_CPU` where gradients are recorded, or nothing."""
    for name in (*ATTENTION, *ON_CPU):
        if is_chosen_to_learn(name):
            return name
    return ""


def compiled_on_cpu(num_tokens: int) -> frozenset[str]:
    """What a compiled step on a CPU takes as well, for attention over `num_tokens`."""
    return frozenset(ON_CPU if num_tokens <= LONGEST_IN_STRIPS else ())


def chosen() -> frozenset[str]:
    """All that is chosen."""
    return _chosen


def choose(names: frozenset[str]) -> None:
    """Take these fast paths from now on, and no others."""
    global _chosen
    unknown = names - {*KERNELS, *ATTENTION, *ON_CPU}
    assert not unknown, f"no such fast paths: {unknown}"
    _chosen = names


@contextmanager
def choosing(names: frozenset[str]) -> Iterator[None]:
    """Take these fast paths for a while."""
    before = _chosen
    choose(names)
    try:
        yield
    finally:
        choose(before)
