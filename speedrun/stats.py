"""The statistics of a claim: mean and spread over seeds, whether one mean beats another, by how
much, and how many seeds it takes to show it.

Scores are bits per byte, so lower is better and a gain is the holder's mean minus the challenger's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speedrun.errors import RecordError

MOST_SEEDS = 1_000
"""Nobody trains more: a gain that needs more seeds than these is not shown by seeds."""


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
        if self.num_seeds == 1:
            return f"{self.mean:.4f} (n=1, spread unknown)"
        return f"{self.mean:.4f} ± {self.spread:.4f} (n={self.num_seeds})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Is the challenger better than the holder by more than a margin?"""

    gain: float
    """Mean of the holder minus mean of the challenger."""
    margin: float
    t: float
    degrees: float
    p: float
    """Chance of such a gain if the true one were no more than the margin; one-sided."""
    error: float
    """Standard error of the gain."""

    def at_least(self, confidence: float = 0.95) -> float:
        """Lower end of the one-sided confidence interval: the true gain is no smaller."""
        return self.gain - self._reach(confidence)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval of the gain."""
        half = self._reach((1 + confidence) / 2)
        return self.gain - half, self.gain + half

    def _reach(self, quantile: float) -> float:
        return float(_t().ppf(quantile, self.degrees)) * self.error if self.error else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedsNeeded:
    """Seeds of the challenger in all, those at hand included, beside the holder's as they are."""

    if_mean_stays: int | None
    """With these p falls to the level if mean and spread stay what they are; None if never."""
    for_power: int | None
    """With these a true gain of that size is shown with the wanted probability; None if never."""
    power_now: float
    """Probability that the seeds at hand were going to show a true gain of that size."""


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and confidence interval.

    Raises
        RecordError: no value, or one that is not finite.
    """
    _check(values)
    mean = statistics.fmean(values)
    spread, half = 0.0, 0.0
    if len(values) > 1:
        spread = statistics.stdev(values)
        half = float(_t().ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Summary(
        num_seeds=len(values), mean=mean, spread=spread, low=mean - half, high=mean + half
    )


def margin_in_bpb(nats_per_token: float, *, num_tokens: int, num_bytes: int) -> float:
    """A margin in nats per token, as contests state it, in bits per byte of a text.

    0.005 nats are 0.0030 bpb with an alphabet of 1,024 and 0.0019 with one of 8,192: fewer tokens
    tell the same bytes.

    Raises
        RecordError: a text without tokens or bytes.
    """
    if num_tokens < 1 or num_bytes < 1:
        raise RecordError(f"{num_tokens:,} tokens of {num_bytes:,} bytes; a margin needs a text")
    return nats_per_token * num_tokens / (num_bytes * math.log(2))


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
    gain = statistics.fmean(holder) - statistics.fmean(challenger)
    error, degrees = _welch(statistics.variance(challenger), len(challenger), holder)
    if error > 0:
        t = (gain - margin) / error
    else:  # equal values on both sides: the difference is certain
        t = math.copysign(math.inf, gain - margin) if gain != margin else 0.0
    p = float(_t().sf(t, degrees))
    return Comparison(gain=gain, margin=margin, t=t, degrees=degrees, p=p, error=error)


def seeds_needed(
    challenger: Sequence[float],
    holder: Sequence[float],
    *,
    p_value: float,
    margin: float = 0.0,
    gain: float | None = None,
    power: float = 0.8,
) -> SeedsNeeded:
    """How many seeds show a gain beyond the margin at `p_value`, the holder's seeds being given.

    `gain` is the true gain to plan for, by default the one observed. Both spreads are taken for the
    true ones, which a few seeds know only roughly. The holder's own error stays, so there are gains
    that no number of seeds shows.

    Raises
        RecordError: as `compare`.

    Source
        The noncentral t distribution with Welch's degrees of freedom, an approximation; the exact
        power is in Moser, Stevens & Watts 1989, Communications in Statistics 18.
    """
    observed = compare(challenger, holder, margin=margin)
    beyond = (observed.gain if gain is None else gain) - margin
    variance, now = statistics.variance(challenger), len(challenger)

    def chance(num_seeds: int) -> tuple[bool, float]:
        """Whether the expected t is significant, and how probably the drawn one is."""
        error, degrees = _welch(variance, num_seeds, holder)
        if error == 0:
            return beyond > 0, float(beyond > 0)
        critical = float(_t().isf(p_value, degrees))
        shift = beyond / error
        return shift >= critical, _chance_above(critical, degrees, shift)

    stays = enough = None
    if beyond > 0:
        for num_seeds in range(now, MOST_SEEDS + 1):
            is_significant, found = chance(num_seeds)
            stays = num_seeds if stays is None and is_significant else stays
            enough = num_seeds if enough is None and found >= power else enough
            if stays is not None and enough is not None:
                break
    return SeedsNeeded(if_mean_stays=stays, for_power=enough, power_now=chance(now)[1])


def reach_of_one_more(
    spread: float, *, num_seeds: int, degrees: float, confidence: float = 0.99
) -> float:
    """How far above the mean of `num_seeds` known values one new value may lie: t s sqrt(1 + 1/n).

    The upper half of a prediction interval. `degrees` is what `spread` was estimated with: seeds
    less one, or infinity for a spread that is known.
    """
    return float(_t().ppf(confidence, degrees)) * spread * math.sqrt(1 + 1 / num_seeds)


def p_if_chosen(p: float, *, chosen: int, runs: int) -> float:
    """p of a test on the best `chosen` of `runs` seeds, whatever the other seeds scored.

    Bonferroni's bound over all choices that could have been made, so the true p is no larger.
    """
    choices = math.comb(max(runs, chosen), chosen)
    return 1.0 if p > 0 and choices >= 1 / p else choices * p


def _welch(variance: float, num_seeds: int, holder: Sequence[float]) -> tuple[float, float]:
    """Standard error of a gain, and its degrees of freedom (Welch and Satterthwaite)."""
    new = variance / num_seeds
    old = statistics.variance(holder) / len(holder) if len(holder) > 1 else 0.0
    parts = new**2 / (num_seeds - 1) + old**2 / max(len(holder) - 1, 1)
    degrees = (new + old) ** 2 / parts if parts > 0 else float(num_seeds - 1)
    return math.sqrt(new + old), degrees


def _chance_above(critical: float, degrees: float, shift: float) -> float:
    """P(T > critical) for a noncentral t."""
    from scipy import stats

    return float(stats.nct.sf(critical, degrees, shift))


def _t() -> Any:
    """Student's distribution; half a second to import, so only where it is asked."""
    from scipy import stats

    return stats.t


def _check(values: Sequence[float]) -> None:
    if not values:
        raise RecordError("no values to summarise; give at least one seed")
    for value in values:
        if not math.isfinite(value):
            raise RecordError(f"{value} among the scores; every seed needs a finite one")
