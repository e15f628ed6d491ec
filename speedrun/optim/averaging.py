"""The weights that are packed: an exponential moving average of the trained ones."""

from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """e <- decay e + (1 - decay) w after every step, in float32, without bias correction.

    Starts from the weights at construction, or, with `start_frac` above 0, from those of the first
    update at that progress. With `decay` 0, or before the start, `weights` are the live ones.

    Source
        Polyak averaging as in parameter-golf PR #287.
    """

    def __init__(self, model: nn.Module, decay: float, start_frac: float = 0.0) -> None:
        self._live = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._decay, self._start_frac = decay, start_frac
        self._average: dict[str, Tensor] = {}
        if decay and not start_frac:
            self._begin()

    def _begin(self) -> None:
        self._average = {name: live.float().clone() for name, live in self._live.items()}

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the weights after a step that ended at `progress`."""
        if not self._decay or progress < self._start_frac:
            return
        if not self._average:
            self._begin()
            return
        averages = list(self._average.values())
        torch._foreach_lerp_(averages, [w.float() for w in self._live.values()], 1 - self._decay)

    def weights(self) -> dict[str, Tensor]:
        """Name -> float32 tensor of every parameter; shares memory, so copy before training on."""
        return dict(self._average) or {name: live.float() for name, live in self._live.items()}

    def state_dict(self) -> dict[str, Any]:
        """The averaged tensors by name; empty before the start."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; its names and shapes must be this model's."""
        assert not state or state.keys() == self._live.keys(), "another model's average"
        self._average = {
            name: state[name].to(live.device, torch.float32, copy=True).view_as(live)
            for name, live in self._live.items()
            if state
        }
