"""When to stop: before the step that could overrun the budget."""

from __future__ import annotations

from collections import deque

RECENT_STEPS = 10
"""A stall is remembered for so many steps, then forgiven."""


class Pace:
    """How long the steps of this run take, each from when it was decided on until its end.

    Among several ranks that includes what is left of the step before. Were the slowest rest and the
    slowest step added up instead, a step more than is needed would often be left undone.
    """

    def __init__(self, first_step_s: float, reserved_s: float = 0.0) -> None:
        """`first_step_s` is a compiled step measured in warm-up: the only evidence at the start.

        `reserved_s` is kept free for what comes after the last step.
        """
        self.reserved_s = reserved_s
        self._recent_s = deque([first_step_s], maxlen=RECENT_STEPS)

    @property
    def slowest_s(self) -> float:
        """The slowest recent step."""
        return max(self._recent_s)

    def record(self, seconds: float) -> None:
        """Remember one step."""
        self._recent_s.append(seconds)

    def fits(self, remaining_s: float) -> bool:
        """Whether another step as slow as the slowest recent one ends within the budget."""
        return remaining_s - self.reserved_s >= self.slowest_s
