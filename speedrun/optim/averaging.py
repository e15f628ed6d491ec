"""The weights that are packed: an average of the trained ones, exponential, plain or windowed."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from speedrun.config import AverageConfig


class WeightAverage:
    """Takes in the weights after every step, in float32; `average.*` says what becomes of them.

    EMA: e <- e + (1 - d) / (1 - d^n) (w - e) after the n-th step. The denominator makes it the
    exponentially weighted mean of what was taken in: the weights that training began with, which a
    short run would still remember, are no part of it.
    SWA: the plain mean of the weights after every `swa_every_steps`-th step. LAWA: of the last
    `swa_window` of these.

    Everything starts at progress `start_frac`. Before, and with neither EMA nor SWA, `weights` are
    the live ones.

    Source
        EMA as in parameter-golf PR #287, there without the denominator, which Kingma and Ba 2014,
        arXiv:1412.6980, have for moments. SWA: Izmailov et al. 2018, arXiv:1803.05407. LAWA:
        Kaddour 2022, arXiv:2209.14981.
    """

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        self._live = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._weights = list(self._live.values())
        self._config = config
        self._average: list[Tensor] = []
        self._window: deque[list[Tensor]] = deque(maxlen=config.swa_window or None)
        self._num_steps = self._num_taken = 0

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the weights after a step that ended at `progress`."""
        decay, every_steps = self._config.ema_decay, self._config.swa_every_steps
        if not (decay or every_steps) or progress < self._config.start_frac:
            return
        self._num_steps += 1
        if every_steps and (self._num_steps - 1) % every_steps:
            return
        self._num_taken += 1
        if self._config.swa_window:
            self._window.append(self._copy())
            self._average = self._mean()
        elif self._num_taken == 1:
            self._average = self._copy()
        else:
            n = self._num_taken
            share = (1 - decay) / (1 - decay**n) if decay else 1 / n
            torch._foreach_lerp_(self._average, self._weights, share)

    def weights(self) -> dict[str, Tensor]:
        """Name -> float32 tensor of every parameter; shares memory, so copy before training on."""
        return dict(zip(self._live, self._average or self._weights, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The averaged tensors and what they are an average of; empty before the start."""
        if not self._num_taken:
            return {}
        return {
            "average": dict(zip(self._live, self._average, strict=True)),
            "window": [dict(zip(self._live, sample, strict=True)) for sample in self._window],
            "num_steps": self._num_steps,
            "num_taken": self._num_taken,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; its names and shapes must be this model's."""
        self._average, self._num_steps, self._num_taken = [], 0, 0
        self._window.clear()
        if state:
            self._average = self._place(state["average"])
            self._window.extend(self._place(sample) for sample in state["window"])
            self._num_steps, self._num_taken = state["num_steps"], state["num_taken"]

    def _copy(self) -> list[Tensor]:
        return [weight.clone() for weight in self._weights]

    def _mean(self) -> list[Tensor]:
        # From the samples each time: a running sum would forget the digits of what left it.
        total = [weight.clone() for weight in self._window[0]]
        for sample in list(self._window)[1:]:
            torch._foreach_add_(total, sample)
        torch._foreach_div_(total, len(self._window))
        return total

    def _place(self, sample: dict[str, Tensor]) -> list[Tensor]:
        assert sample.keys() == self._live.keys(), "another model's average"
        return [
            sample[name].to(live.device, torch.float32, copy=True).view_as(live)
            for name, live in self._live.items()
        ]
