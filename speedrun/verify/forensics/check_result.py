"""Checks of the result: the mean over all seeds, of packed weights, with its true spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speedrun.verify.forensics.claims import Claim, Claims, finding_about
from speedrun.verify.forensics.evidence import Evidence, Shown
from speedrun.verify.forensics.figures import Figure, mean, smallest, spreads
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, Stage

Findings = Iterator[Finding]

_UNITS = {
    **{"bpb": "val_bpb", "nats": "val_loss", "total": "bytes in all", "code": "bytes of code"},
    **{"model": "bytes of weights", "steps": "steps", "train_s": "s of training"},
    **{"eval_s": "s of evaluation", "step_ms": "ms a step"},
}


def headline(claims: Claims, logs: Evidence) -> Findings:
    """V10: the result is the mean over the seeds, of packed weights, and not the best one."""
    claim = claims.headline
    if claim is None:
        return
    table = list(claims.table((), "bpb").items())
    means = [*logs.averages("bpb", claims, packed=True)]
    if len(table) > 1:
        means.append(mean([figure for _, figure in table]))
    if any(map(claim.figure.agrees, means)):
        return
    every = logs.all("bpb")
    own = [s for s in every if s.stage is Stage.PACKED and claim.figure.agrees(s.figure)]
    seeds = table if len(table) > 1 else _mates(own, claims, logs)
    if own and len(seeds) < 2:
        return
    hit = next((seed for seed, figure in seeds if claim.figure.agrees(figure)), None)
    early = next((s for s in every if claim.figure.agrees(s.figure)), None)
    if len(seeds) > 1 and (own or hit is not None):
        yield _one_seed(claims, claim, seeds, own[0].run.seed if hit is None else hit)
    elif early is not None and not table:
        yield unpacked(claims, claim, early)
    elif len(table) > 1:
        yield finding_about(claims, "mean", Severity.CONTRADICTION)(
            line=claim.figure.line,
            found=f"{claim.key} {claim.figure.value:.8g}",
            expected=f"{means[-1].value:.8g}, the mean of {len(table)} claimed seeds",
            sentence="the result is neither the mean of its seeds nor one of them",
        )
    else:
        yield not_shown(claims, claim, every)


def _mates(own: list[Shown], claims: Claims, logs: Evidence) -> list[tuple[int, Figure]]:
    """Final scores by seed of the runs that the result is one of."""
    family = logs.families[own[0].run.family] if own else []
    runs = family if len(family) > 1 else logs.finals(claims)
    return [(run.seed or 0, run.final.bpb) for run in runs if run.final is not None]


def _one_seed(
    claims: Claims, claim: Claim, seeds: list[tuple[int, Figure]], hit: int | None
) -> Finding:
    values = [figure for _, figure in seeds]
    better = mean(values).value - claim.figure.value
    is_best = claim.figure.value - claim.figure.half <= smallest(values).value
    what = f"the best of {len(seeds)} seeds" if is_best else f"one of {len(seeds)} seeds"
    return finding_about(claims, "best-seed", Severity.BROKEN)(
        line=claim.figure.line,
        found=f"{claim.key} {claim.figure.value:.8g}, {what} ({hit})",
        expected=f"their mean, {mean(values).value:.8g}",
        sentence="a single seed is reported as the result; it is "
        f"{abs(better):.5f} bpb {'better' if better > 0 else 'worse'} than the mean",
    )


def unpacked(claims: Claims, claim: Claim, early: Shown) -> Finding:
    """A result that is the score of weights before packing."""
    return finding_about(claims, "unpacked-score", Severity.BROKEN)(
        line=claim.figure.line,
        found=f"{claim.key} {claim.figure.value:.8g}, the score of {early.place}",
        expected="a score of packed weights",
        sentence=f"that score ({early.label or 'no label'}) was taken before packing; the "
        "artifact has another one",
    )


def not_shown(
    claims: Claims, claim: Claim, every: list[Shown], elsewhere: Sequence[Shown] = ()
) -> Finding:
    """A claim that no log shows, with the nearest figure that one does."""
    near = min(every, key=lambda s: abs(s.figure.value - claim.figure.value), default=None)
    other = next((s for s in elsewhere if claim.figure.agrees(s.figure)), None)
    unit = _UNITS[claim.kind]
    whose = "" if claim.seed is None else f" of seed {claim.seed}"
    sentence = f"no log{whose} shows this figure for {unit}"
    if other is not None:
        sentence += f"; {other.place} does, a run of seed {other.run.seed}"
    # Milliseconds a step are worked out by hand more often than copied.
    severity = Severity.LOOK if claim.kind == "step_ms" else Severity.CONTRADICTION
    return finding_about(claims, "claim-not-in-logs", severity)(
        line=claim.figure.line,
        found=f"{claim.key} {claim.figure.value:.10g}",
        expected=f"{near.figure.value:.10g} ({near.place})" if near else "a log that shows it",
        sentence=sentence,
    )


def spread(claims: Claims, logs: Evidence) -> Findings:
    """A standard deviation that is stated is that of the values beside it, or in the logs."""
    for claim in claims.figures:
        if claim.summary != "std" or claim.seed is not None:
            continue
        finals = logs.finals(claims)
        logged = [s[-1].figure for run in finals if (s := logs.of(claim.kind, run))]
        tables = [list(claims.table(claim.place, claim.kind).values()), logged]
        known = [spreads(table) for table in tables if len(table) > 1]
        if not known or any(claim.figure.agrees(s) for pair in known for s in pair):
            continue
        sample, population = known[0]
        table = next(table for table in tables if len(table) > 1)
        yield finding_about(claims, "spread", Severity.CONTRADICTION)(
            line=claim.figure.line,
            found=f"{claim.key} {claim.figure.value:.6g}",
            expected=f"{sample.value:.3g} (of a population {population.value:.3g})",
            sentence=f"the spread of {len(table)} seeds is another one",
        )


def best_of_runs(claims: Claims, runs: list[Log]) -> Findings:
    """V10: the seeds of the result are all that were run, not the best of them."""
    declared = {seed for seed, _ in claims.seeds}
    scores: dict[int, Figure] = {}
    for claim in claims.figures:
        if claim.kind == "bpb" and claim.seed is not None and not claim.is_early:
            scores.setdefault(claim.seed, claim.figure)
    for run in runs:
        if run.seed is not None and run.final is not None:
            scores.setdefault(run.seed, run.final.bpb)
    inside = [figure for seed, figure in scores.items() if seed in declared]
    outside = {seed: figure for seed, figure in scores.items() if seed not in declared}
    if not inside or not outside:
        return
    worst = max(figure.value for figure in inside)
    if min(figure.value for figure in outside.values()) > worst and claims.headline:
        average = mean([*inside, *outside.values()])
        yield finding_about(claims, "best-of-runs", Severity.BROKEN)(
            line=claims.headline.figure.line,
            found=f"the best {len(inside)} of {len(scores)} seeds",
            expected=f"all of them, mean {average.value:.6g}",
            sentence=f"seed {', '.join(map(str, sorted(outside)))} is left out of the result, and "
            "is worse than every seed in it",
        )
