"""One of the processes of `rates.average_bytes_per_s`: sums, and rank 0 prints the rate."""

from __future__ import annotations

import torch

from speedrun.measure.rates import best_seconds
from speedrun.ranks import Ranks


def main() -> None:
    """Join the others and add up as many bytes as a small network's gradients have."""
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    num_bytes = 1 << 28 if ranks.device.type == "cuda" else 1 << 24
    gradient = torch.ones(num_bytes // 4, device=ranks.device)
    # The same number of calls on every rank: `best_seconds` stops by the clock.
    seconds = min(
        best_seconds(lambda: ranks.total(gradient), ranks.device, patience_s=0) for _ in range(4)
    )
    if ranks.is_main:
        print(num_bytes / seconds)  # noqa: T201 (this is what the parent reads)
    ranks.close()


if __name__ == "__main__":
    main()
