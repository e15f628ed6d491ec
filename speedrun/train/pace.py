"""When to stop: before the step that could overrun the budget."""

from __future__ import annotations

from collections import deque

RECENT_STEPS = 20
"""A stall is remembered for so many steps, then forgiven."""


class Pace:
    """How long the steps of this run take."""

    def __init__(self, first_step_s: float, reserved_s: float = 0.0) -> None:
        """`first_step_s` is a compiled step measured in warm-up: the only evidence at the start.

        `reserved_s` is kept free for what comes after the last step.
        """
        self.reserved_s = reserved_s
        self._recent_s = deque([first_step_s], maxlen=RECENT_STEPS)
        self._recent_rests_s = deque([0.0], maxlen=RECENT_STEPS)

    @property
    def slowest_s(self) -> float:
        """The slowest recent step."""
        return max(self._recent_s)

    @property
    def slowest_rest_s(self) -> float:
        """The slowest recent rest of a step, after the moment when rank 0 decides on the next."""
        return max(self._recent_rests_s)

    def record(self, seconds: float, rest_s: float = 0.0) -> None:
        """Remember one step, and how much of it was left when the next was decided on."""
        self._recent_s.append(seconds)
        self._recent_rests_s.append(rest_s)

    def fits(self, remaining_s: float) -> bool:
        """Whether another step as slow as the slowest recent one ends within the budget."""
        return remaining_s - self.reserved_s >= self.slowest_s
