"""Which process am I, of how many, on which device. The one importer of torch.distributed.

One process per device, started by torchrun or alone. Everything here is a no-op for a single rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from speedrun.errors import ConfigError


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

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in one flat message per dtype."""
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for members in by_dtype.values():
            flat = torch.cat([tensor.flatten() for tensor in members])
            dist.all_reduce(flat)
            flat /= self.world
            pieces = torch.split(flat, [tensor.numel() for tensor in members])
            for tensor, piece in zip(members, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

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
