"""Learning rates and momentum as pure functions of progress: 0 at the start, 1 when time is up."""

from collections.abc import Iterable

import torch

from speedrun.config import OptimConfig, RunConfig, ScheduleConfig


def lr_scale(progress: float, config: ScheduleConfig) -> float:
    """Multiplier of every learning rate: 1, then a line towards 0, held at `final_lr_frac`."""
    if config.warmdown_frac == 0 or progress < 1 - config.warmdown_frac:
        return 1.0
    return max(min((1 - progress) / config.warmdown_frac, 1.0), config.final_lr_frac)


def muon_momentum(progress: float, config: OptimConfig) -> float:
    """Muon's momentum: a line from its start to its final value over the warm-up fraction."""
    warmth = (
        min(progress / config.muon_momentum_warmup_frac, 1.0)
        if config.muon_momentum_warmup_frac
        else 1.0
    )
    return (1 - warmth) * config.muon_momentum_start + warmth * config.muon_momentum


def apply_schedule(
    optimizers: Iterable[torch.optim.Optimizer], progress: float, config: RunConfig
) -> None:
    """Set rates (and Muon's momentum) of groups made by `build_optimizers`, before a step."""
    scale = lr_scale(progress, config.schedule)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["base_lr"] * scale
        if group["is_muon"]:
            group["momentum"] = muon_momentum(progress, config.optim)
