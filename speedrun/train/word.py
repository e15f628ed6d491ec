"""What rank 0 says to all: in the message of one step, what shall be done in the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from speedrun.clock import Clock
from speedrun.config import TrainConfig
from speedrun.ranks import Ranks
from speedrun.train.pace import Pace


class Word(NamedTuple):
    """Rank 0's decision, as numbers, since it travels among gradients.

    Every rank obeys it: with a clock each, learning rates would differ in the last digits and the
    copies of the weights would drift apart, or one rank would stop while others wait for it.
    """

    progress: float
    """Of the next step, 0 to 1."""
    goes_on: float
    """Whether there is a next step."""
    saves: float
    """Whether the state is saved before it."""
    is_signalled: float
    """Whether it is a signal that ends the run."""


SILENCE = Word(0.0, 0.0, 0.0, 0.0)
"""What other ranks say."""


class Speaker:
    """Reads rank 0's clock and decides; on other ranks it keeps silent."""

    def __init__(
        self,
        train: TrainConfig,
        clock: Clock,
        ranks: Ranks,
        pace: Pace,
        should_stop: Callable[[], bool],
        *,
        can_save: bool,
    ) -> None:
        self.pace, self.decided_s, self.last_saved_s = pace, clock.elapsed_s, clock.elapsed_s
        self._train, self._clock, self._ranks = train, clock, ranks
        self._should_stop = should_stop
        self._save_every_s = train.checkpoint_every_s if can_save else 0.0

    def speak(self, steps: int) -> Word:
        """What comes after `steps` steps, the last of which may not have ended."""
        self.decided_s = now_s = self._clock.elapsed_s
        if not self._ranks.is_main:
            return SILENCE
        is_signalled = self._should_stop()
        saves = self._save_every_s > 0 and now_s - self.last_saved_s >= self._save_every_s
        if saves:
            self.last_saved_s = now_s
        fits = steps < self._train.max_steps and self.pace.fits(self._clock.budget_s - now_s)
        # float32, as it arrives: a run that is resumed hears its first word by other means.
        progress = torch.tensor(max(self._clock.progress, steps / self._train.max_steps))
        return Word(
            progress=float(progress),
            goes_on=fits and not is_signalled,
            saves=saves,
            is_signalled=is_signalled,
        )
