"""When to stop: before the step that could overrun the budget."""

from __future__ import annotations

from collections import deque

RECENT_STEPS = 20
"""A stall is remembered for so many steps, then forgiven."""


class Pace:
    """How long the steps of this run take."""

    def __init__(self, first_step_s: float) -> None:
        """`first_step_s` is a compiled step measured in warm-up: the only evidence at the start."""
        self._recent_s = deque([first_step_s], maxlen=RECENT_STEPS)

    @property
    def slowest_s(self) -> float:
        """The slowest recent step."""
        return max(self._recent_s)

    def record(self, seconds: float) -> None:
        """Remember one step."""
        self._recent_s.append(seconds)

    def fits(self, remaining_s: float, reserved_s: float = 0.0) -> bool:
        """Whether another step as slow as the slowest recent one ends within the budget."""
        return remaining_s - reserved_s >= self.slowest_s
