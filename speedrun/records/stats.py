"""The statistics of a claim: mean and spread over seeds, and whether one mean beats another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from speedrun.errors import RecordError


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Several seeds of one thing."""

    num_seeds: int
    mean: float
    spread: float
    """Sample standard deviation; 0 for a single seed."""
    low: float
    high: float
    """Two-sided 95 % confidence interval of the mean (Student's t); the mean for a single seed."""

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.spread:.4f} (n={self.num_seeds})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Is the challenger better than the holder by more than a margin? Lower values are better."""

    gain: float
    """Mean of the holder minus mean of the challenger."""
    margin: float
    t: float
    degrees: float
    p: float
    """Chance of such a gain if the true one were no more than the margin; one-sided."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and confidence interval.

    Raises
        RecordError: no value, or one that is not finite.
    """
    _check(values)
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    half = 0.0
    if len(values) > 1:
        from scipy import stats  # half a second to import

        half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Summary(
        num_seeds=len(values), mean=mean, spread=spread, low=mean - half, high=mean + half
    )


def compare(
    challenger: Sequence[float], holder: Sequence[float], *, margin: float = 0.0
) -> Comparison:
    """Welch's one-sided t-test of "the challenger's mean is lower by more than `margin`".

    A holder with a single value is taken as a constant (a one-sample test): some old records have
    no more than that.

    Raises
        RecordError: fewer than two values of the challenger, or a value that is not finite.

    Source
        Welch 1947, Biometrika 34; the golf contest asks for 0.005 nats per token at p < 0.01.
    """
    _check(challenger)
    _check(holder)
    if len(challenger) < 2:
        raise RecordError("1 seed of the challenger has no spread; a test needs 2 or more")
    from scipy import stats

    gain = statistics.fmean(holder) - statistics.fmean(challenger)
    new = statistics.variance(challenger) / len(challenger)
    old = statistics.variance(holder) / len(holder) if len(holder) > 1 else 0.0
    degrees = float(len(challenger) - 1)
    if new + old > 0:
        t = (gain - margin) / math.sqrt(new + old)
        parts = new**2 / (len(challenger) - 1) + old**2 / max(len(holder) - 1, 1)
        degrees = (new + old) ** 2 / parts if parts > 0 else degrees
    else:  # equal values on both sides: the difference is certain
        t = math.copysign(math.inf, gain - margin) if gain != margin else 0.0
    return Comparison(
        gain=gain, margin=margin, t=t, degrees=degrees, p=float(stats.t.sf(t, degrees))
    )


def _check(values: Sequence[float]) -> None:
    if not values:
        raise RecordError("no values to summarise; give at least one seed")
    for value in values:
        if not math.isfinite(value):
            raise RecordError(f"{value} among the scores; every seed needs a finite one")
