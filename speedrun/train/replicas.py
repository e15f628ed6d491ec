"""Whether all ranks still hold the same weights, to the bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from speedrun.errors import ReplicaError
from speedrun.ranks import Ranks

_FACTOR = 6_364_136_223_846_793_005  # Knuth's, for sums that wrap around at 64 bits


def checksum(weights: Iterable[Tensor]) -> int:
    """64 bits of the weights' own bits: float32 tensors, read as integers and summed.

    Sums of integers come out the same in any order, so no device or thread count changes them.
    """
    total = None
    for weight in weights:
        part = weight.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64)
        total = part if total is None else total * _FACTOR + part
    return 0 if total is None else int(total)


def check_replicas(weights: Iterable[Tensor], ranks: Ranks, step: int) -> str:
    """Compare checksums over ranks; all must call. Returns it as the log has it.

    Raises
        ReplicaError: a rank's weights are not those of rank 0.
    """
    sums = ranks.collect(checksum(weights))
    if different := [rank for rank, found in enumerate(sums) if found != sums[0]]:
        raise ReplicaError(
            f"step {step}: the weights of rank {different[0]} have checksum "
            f"{_hex(sums[different[0]])}, rank 0's have {_hex(sums[0])} ({len(different)} of "
            f"{ranks.world} ranks differ); they drifted apart: use the same GPUs, drivers and "
            "torch on all ranks, and go on from the last checkpoint with --resume"
        )
    return _hex(sums[0])


def _hex(number: int) -> str:
    return f"{number % 2**64:016x}"
