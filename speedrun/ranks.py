"""Which process am I, of how many, on which device. The one importer of torch.distributed.

One process per device, started by torchrun or alone. Everything here is a no-op for a single rank.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from speedrun.errors import ConfigError

# Renamed in torch 2.13; under the old names they do the same, with a warning.
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Message(NamedTuple):
    """A tensor that is under way while this rank computes."""

    result: Tensor
    work: Any = None
    """What to wait for; None if it is there."""

    def wait(self) -> Tensor:
        """The tensor, once it has come; on a GPU, what is queued after this will find it."""
        if self.work is not None:
            self.work.wait()
        return self.result


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place among its sisters."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def from_environment(cls) -> Ranks:
        """Join the process group that torchrun's variables describe, or be alone.

        Raises
            ConfigError: the variables are incomplete, contradict each other or name more local
                ranks than there are GPUs; or the other processes cannot be reached.
        """
        try:
            rank = int(os.environ.get("RANK", "0"))
            world = int(os.environ.get("WORLD_SIZE", "1"))
            local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from None
        if not 0 <= rank < world or (world > 1 and "RANK" not in os.environ):
            raise ConfigError(
                f"RANK = {os.environ.get('RANK', 'unset')} is no place among WORLD_SIZE = {world} "
                "processes; start them with torchrun, or unset both to run alone"
            )
        device = torch.device("cpu")
        if torch.cuda.is_available():
            if local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} visible;"
                    " start fewer processes"
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        if world > 1 and not dist.is_initialized():
            try:
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"rank {rank} cannot join the other processes: {error}"
                ) from error
        return cls(rank=rank, world=world, device=device)

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and decides when to stop."""
        return self.rank == 0

    def broadcast(self, *values: float) -> tuple[float, ...]:
        """Rank 0's values, on every rank."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return tuple(shared.tolist())

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def total(self, flat: Tensor) -> None:
        """Replace a tensor by its sum over ranks, to the bit the same on all of them."""
        if self.world > 1:
            dist.all_reduce(flat)

    def scatter_sums(self, stack: Tensor) -> Message:
        """Send off a stack of one slice per rank; what comes is the sum of everybody's own slice.

        Shapes
            stack   (world * n, ...)  must stay as it is until the message is there
            result  (n, ...)          alone, the stack itself
        """
        if self.world == 1:
            return Message(stack)
        mine = torch.empty_like(stack[: len(stack) // self.world])
        return Message(mine, _scatter(mine, stack, async_op=True))

    def gather(self, mine: Tensor) -> Message:
        """Send off this rank's slice; what comes is the stack of everybody's, in their order.

        Shapes
            mine    (n, ...)          must stay as it is until the message is there
            result  (world * n, ...)  alone, `mine` itself
        """
        if self.world == 1:
            return Message(mine)
        mine = mine.contiguous()  # NCCL takes nothing else
        stack = mine.new_empty(self.world * len(mine), *mine.shape[1:])
        return Message(stack, _gather(stack, mine, async_op=True))

    def collect(self, number: int) -> list[int]:
        """Every rank's 64-bit number, on every rank."""
        mine = torch.tensor([number], device=self.device)
        return [int(value) for value in self.gather(mine).wait().tolist()]

    def peak_memory_bytes(self) -> int:
        """The most memory that this process has held: of its GPU, or of the machine."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()

    def synchronize(self) -> None:
        """Wait until the device has done what was queued; only then does a clock mean much."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Leave the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def visible_world() -> int:
    """Processes that a run on this machine would have: one per GPU, or one."""
    return max(torch.cuda.device_count(), 1)


def peak_resident_bytes() -> int:
    """The most of the machine's memory that this process has held; 0 where nobody counts."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
