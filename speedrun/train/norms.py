"""How large weights are and how far a step moves them, by group of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Norms:
    """Euclidean norms around one step: `remember` before it, `measure` after it.

    A copy of the weights is held in between, so this is for the steps that are logged.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Groups have names, see `optim.groups.build_optimizers`."""
        self._groups: dict[str, list[Tensor]] = {
            group["name"]: group["params"]
            for optimizer in optimizers
            for group in optimizer.param_groups
        }
        self._before: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the weights as they are."""
        for name, weights in self._groups.items():
            self._before[name] = [weight.clone() for weight in weights]

    @torch.no_grad()
    def measure(self) -> dict[str, dict[str, float]]:
        """`weight_norm` and `update_norm` of each group; what was remembered is let go."""
        kinds = "weight_norm", "update_norm"
        sizes = torch.stack(
            [
                torch.stack(torch._foreach_norm(tensors)).norm()
                for name, weights in self._groups.items()
                for tensors in (weights, torch._foreach_sub(weights, self._before[name]))
            ]
        )
        self._before.clear()
        pairs = sizes.view(-1, 2).T.tolist()
        return {
            kind: {name: float(f"{size:.6g}") for name, size in zip(self._groups, row, strict=True)}
            for kind, row in zip(kinds, pairs, strict=True)
        }
