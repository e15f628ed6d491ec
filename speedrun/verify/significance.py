"""Significance (V10): do several seeds show a gain over the standing record, or could it be luck?

One submission cannot answer, so this is a rule about submissions of one recipe together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from speedrun.stats import (
    MOST_SEEDS,
    SeedsNeeded,
    compare,
    margin_in_bpb,
    p_if_chosen,
    seeds_needed,
    summarise,
)
from speedrun.tracks.load import Track
from speedrun.verify.rules import Rule
from speedrun.verify.verdict import RuleResult, Status

POWER = 0.8


def significance(
    measured: Sequence[float],
    standing: Sequence[float] | None,
    track: Track,
    *,
    num_tokens: int,
    num_bytes: int,
    seeds: Sequence[int] = (),
    undeclared: Sequence[float | None] = (),
) -> RuleResult:
    """The mean over seeds beats the standing record by the track's margin, at the track's p.

    FAIL where the mean does not gain more than the margin; UNDECIDED where it does and the seeds
    at hand do not show that it is no luck, with the number of seeds that would.

    Args:
        measured: Scores as the judge measured them, in bpb, one for each seed.
        standing: Scores of the standing record's seeds; None if the track has no record.
        track: Its margin, level and number of seeds.
        num_tokens, num_bytes: Targets and raw bytes of the scored text: what makes bpb of nats.
        seeds: The seeds behind `measured`, if they are known: a repeated one is no new evidence.
        undeclared: Scores (None: unknown) of further runs of the recipe that were not handed in.
    """
    rule, asked = Rule("significance"), track.record
    values = [value for value in measured if math.isfinite(value)]
    if len(values) < len(measured) or not values:
        return rule.undecided("not every submission has a score", "mend what its verdict names")
    found = summarise(values)
    if obstacle := _repeats(values, seeds):
        return rule.undecided(*obstacle, measured=str(found))
    missing = max(asked.seeds - len(values), 0)
    if standing is None:
        if missing:
            return rule.undecided(
                f"{track.name} asks for {asked.seeds} seeds",
                f"hand in {_more(missing)}",
                measured=str(found),
            )
        return rule.result(
            True, str(found), "no standing record", evidence="the first record of its track"
        )
    margin = margin_in_bpb(asked.margin_nats_per_token, num_tokens=num_tokens, num_bytes=num_bytes)
    holder = summarise(standing)
    told = f"{found} against {holder}"
    if len(standing) == 1:
        told += ", of which one seed is known, taken as exact"
    if len(values) == 1:
        return rule.undecided(
            f"{told}; one seed has no spread, so nobody can tell a gain from luck",
            f"hand in {_more(max(missing, 1))}",
            f"gain {holder.mean - found.mean:+.4f} bpb (1 seed)",
        )
    tested = compare(values, standing, margin=margin)
    p, correction = _corrected(tested.p, values, standing, margin, undeclared)
    needed = seeds_needed(values, standing, p_value=asked.p_value, margin=margin, power=POWER)
    low, high = tested.interval()
    confidence = 1 - asked.p_value
    evidence = (
        f"{told}; t = {tested.t:.2f} with {tested.degrees:.1f} degrees; 95 % interval of the gain "
        f"{low:+.4f} to {high:+.4f}, at least {tested.at_least(confidence):+.4f} at "
        f"{100 * confidence:g} %{correction}"
    )
    measures = f"gain {tested.gain:+.4f} bpb, p = {p:.2g} ({len(values)} seeds)"
    limit = f"> {margin:.4f} bpb at p <= {asked.p_value:g}, {asked.seeds} seeds"
    if tested.gain <= margin:
        return rule.result(
            False,
            measures,
            limit,
            evidence=evidence,
            fix=f"a gain of {margin:.4f} bpb, or no claim to a record",
        )
    if p <= asked.p_value and not missing:
        return rule.result(True, measures, limit, evidence=evidence)
    return RuleResult(
        id=rule.id,
        status=Status.UNDECIDED,
        measured=measures,
        limit=limit,
        evidence=evidence,
        fix=_advice(needed, len(values), missing, chosen=p > tested.p),
    )


def _repeats(values: Sequence[float], seeds: Sequence[int]) -> tuple[str, str] | None:
    """Why these are fewer experiments than they look, and what to do."""
    twice = [str(seed) for seed, times in Counter(seeds).items() if times > 1]
    if twice:
        return (
            f"seed {', '.join(twice)} comes more than once; a repeated seed is no new evidence",
            "hand in one submission for each seed",
        )
    same = [value for value, times in Counter(values).items() if times > 1]
    if same:
        return (
            f"two seeds score {same[0]:.9f} to the last digit: one and the same artifact, or a "
            "method that has no chance in it",
            "`speedrun verify --retrain` tells which",
        )
    return None


def _corrected(
    p: float,
    values: Sequence[float],
    standing: Sequence[float],
    margin: float,
    undeclared: Sequence[float | None],
) -> tuple[float, str]:
    """p once runs that were not handed in are counted too, and the words for it."""
    if not undeclared:
        return p, ""
    runs = len(values) + len(undeclared)
    known = [value for value in undeclared if value is not None and math.isfinite(value)]
    if len(known) == len(undeclared):
        with_all = compare([*values, *known], standing, margin=margin)
        return max(p, with_all.p), (
            f"; with the {len(known)} runs that were not handed in: gain {with_all.gain:+.4f}, "
            f"p = {with_all.p:.2g} instead of {p:.2g}"
        )
    chosen = p_if_chosen(p, chosen=len(values), runs=runs)
    return chosen, (
        f"; {len(undeclared)} runs were not handed in: if these {len(values)} are the best of "
        f"{runs}, p = {p:.2g} becomes up to {chosen:.2g}"
    )


def _advice(needed: SeedsNeeded, now: int, missing: int, *, chosen: bool) -> str:
    """How many seeds would settle it."""
    if chosen:
        return "hand in every run of the recipe"
    if missing and needed.if_mean_stays is not None and needed.if_mean_stays <= now + missing:
        return f"hand in {_more(missing)}, as many as the track asks for"
    if needed.if_mean_stays is None:
        return (
            f"no number of seeds up to {MOST_SEEDS:,} settles it: the standing record's own spread "
            "is too large beside this gain; judge more seeds of the record, or gain more"
        )
    stays = max(needed.if_mean_stays - now, missing)
    advice = (
        f"{_more(stays)} would settle it if mean and spread stay (run them all, then test once)"
    )
    if needed.for_power is not None:
        advice += (
            f"; {_more(max(needed.for_power - now, missing))} find a true gain of this size with "
            f"{100 * POWER:g} % probability (these had {100 * needed.power_now:.0f} %)"
        )
    return advice


def _more(count: int) -> str:
    return f"{count} more seed{'s' if count != 1 else ''}"
