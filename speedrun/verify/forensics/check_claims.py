"""Checks of `submission.json` against the logs and against itself: is what it claims what happened?

A claim holds if some log shows it, to the digits that it has, or if it is the mean, the largest or
the smallest of what the logs show. The result itself must be the mean over the seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from speedrun.tracks.load import Track
from speedrun.verify.forensics.check_logs import (
    judge_ratio,
    log_split,
    overrun_reason,
    overrun_severity,
)
from speedrun.verify.forensics.claims import Claim, Claims
from speedrun.verify.forensics.dialects import admission
from speedrun.verify.forensics.figures import (
    Figure,
    bytes_per_token,
    largest,
    mean,
    smallest,
    spreads,
    total,
)
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, Stage

Findings = Iterator[Finding]

_UNITS = {
    **{"bpb": "val_bpb", "nats": "val_loss", "total": "bytes in all", "code": "bytes of code"},
    **{"model": "bytes of weights", "steps": "steps", "train_s": "s of training"},
    **{"eval_s": "s of evaluation", "step_ms": "ms a step"},
}
_FLAGS = {
    "training-time": re.compile(r"train.*under|under.*train"),
    "evaluation-time": re.compile(r"eval.*under|under.*eval"),
    "size": re.compile(r"(?:artifact|size|bytes).*under|under.*(?:16|mb|cap)"),
    "too-few-seeds": re.compile(r"(?:three|3)_seeds"),
}
"""What a compliance flag denies if it is true."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure of a log that a claim may be about."""

    figure: Figure
    run: Log
    label: str
    stage: Stage = Stage.PACKED

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.run.name}:{self.figure.line}"


def shown(kind: str, run: Log) -> list[Shown]:
    """All that a log shows of one kind, the figure that stands for the run last.

    Of scores during training only the last one counts: among hundreds of rounded ones, some will
    look like any claim.
    """
    if kind in ("bpb", "nats"):
        last = [s for s in run.scores if s.stage is Stage.TRAINING][-1:]
        later = [s for s in run.scores if s.stage is not Stage.TRAINING]
        return [
            Shown(figure, run, score.label, score.stage)
            for score in (*last, *later, *([run.final] if run.final else []))
            if (figure := score.bpb if kind == "bpb" else score.nats) is not None
        ]
    figures: list[Figure | None] = []
    if kind in ("total", "code", "model"):
        figures = [Figure(float(s.bytes), 0.0, s.line) for s in run.sizes if s.part == kind]
    elif kind == "steps":
        figures = [run.num_steps]
    elif kind == "train_s":
        figures = [run.train_ms.scaled(1e-3) if run.train_ms else None]
    elif kind == "eval_s":
        times = [s.eval_ms.scaled(1e-3) for s in run.scores if s.eval_ms]
        figures = [total(times)] if len(times) > 1 else []
        figures += [*times, *run.eval_totals_s]
    elif kind == "step_ms":
        figures = [step.average_ms for step in run.steps[-3:]] + [run.step_ms]
    return [Shown(figure, run, kind) for figure in figures if figure is not None]


def check_claims(
    claims: Claims, runs: list[Log], track: Track | None, on_disk: Sequence[float] = ()
) -> Findings:
    """Everything that one claim file shows; `on_disk` are the sizes of files beside it."""
    yield from form(claims)
    yield from admitted(claims)
    yield from spread(claims, runs)
    yield from byte_counts(claims, runs)
    yield from best_of_runs(claims, runs)
    if runs:
        yield from headline(claims, runs)
        yield from figures(claims, runs, on_disk)
    elif track is not None:
        yield from limits(claims, track)


def _finding(claims: Claims, id: str, severity: Severity) -> Callable[..., Finding]:
    return partial(Finding, id=id, severity=severity, file=claims.name)


def form(claims: Claims) -> Findings:
    """The fields that a reader needs are there, once, and are numbers."""
    has = {
        "author": claims.has("author") or claims.has("github_id"),
        "date": claims.has("date"),
        "track": claims.has("track"),
        "val_bpb": claims.headline is not None,
        "bytes_total": any(c.kind == "total" for c in claims.figures),
        "seeds": bool(claims.seeds),
    }
    missing = [name for name, is_there in has.items() if not is_there]
    if missing:
        yield _finding(claims, "missing-fields", Severity.LOOK)(
            line=1,
            found=f"no {', no '.join(missing)}",
            expected="all of them",
            sentence="what is not claimed could not be checked",
        )
    for leaf in claims.repeated[:3]:
        yield _finding(claims, "repeated-key", Severity.CONTRADICTION)(
            line=leaf.line,
            found=f"{leaf.key} a second time: {leaf.text}",
            expected="every key once",
            sentence="readers differ in which of the two they believe",
        )
    for leaf in claims.odd[:3]:
        yield _finding(claims, "not-a-number", Severity.CONTRADICTION)(
            line=leaf.line,
            found=f"{leaf.key} = {leaf.text}",
            expected="a number, or null",
            sentence="this is not JSON, and no result",
        )


def admitted(claims: Claims) -> Findings:
    """Words and flags with which a record admits what the rules forbid."""
    for leaf in claims.leaves:
        if isinstance(leaf.value, str) and (words := admission(leaf.value)):
            yield _finding(claims, "validation-use", Severity.LOOK)(
                line=leaf.line,
                found=f"{leaf.path[-1]}: {words!r}",
                expected="validation text is scored only",
                sentence="the record speaks of validation text in training or calibration",
            )
        elif leaf.value is False and leaf.path[0] == "compliance":
            yield _finding(claims, "compliance", Severity.LOOK)(
                line=leaf.line,
                found=f"{leaf.key} is false",
                expected="true",
                sentence="the record says itself that it does not comply",
            )


def flags(claims: Claims, found: Sequence[Finding]) -> Findings:
    """No compliance flag says the opposite of what was found."""
    for leaf in claims.leaves:
        if leaf.value is not True or leaf.path[0] != "compliance":
            continue
        for id, pattern in _FLAGS.items():
            broken = next((f for f in found if f.id == id and f.severity is Severity.BROKEN), None)
            if broken is not None and pattern.search(leaf.path[-1].lower()):
                yield _finding(claims, "compliance", Severity.CONTRADICTION)(
                    line=leaf.line,
                    found=f"{leaf.key} is true",
                    expected=f"false: {broken.found} ({broken.file}:{broken.line})",
                    sentence=f"the record declares to comply where {id} is broken",
                )


def headline(claims: Claims, runs: list[Log]) -> Findings:
    """V10: the result is the mean over the seeds, of packed weights, and not the best one."""
    claim = claims.headline
    if claim is None:
        return
    table = claims.table((), "bpb")
    if len(table) > 1 and claim.figure.agrees(mean(list(table.values()))):
        return
    every = [s for run in runs for s in shown("bpb", run)]
    packed = [s for s in every if s.stage is Stage.PACKED]
    finals = _finals(claims, runs)
    if any(claim.figure.agrees(average) for average in _averages("bpb", finals)):
        return
    own = [s for s in packed if claim.figure.agrees(s.figure)]
    if own and len(finals) == 1 and len(table) < 2:
        return
    scores = list(table.items()) if len(table) > 1 else []
    scores = scores or [(run.seed or 0, run.final.bpb) for run in finals if run.final]
    at = _finding(claims, "best-seed", Severity.BROKEN)
    if scores and (own or any(claim.figure.agrees(figure) for _, figure in scores)):
        average = mean([figure for _, figure in scores])
        best = min(figure.value for _, figure in scores)
        hit = next(
            (seed for seed, figure in scores if claim.figure.agrees(figure)),
            own[0].run.seed if own else None,
        )
        is_best = claim.figure.value - claim.figure.half <= best + 1e-9
        what = "the best" if is_best else "one"
        yield at(
            line=claim.figure.line,
            found=f"{claim.key} {claim.figure.value:.8g}, {what} of {len(scores)} seeds ({hit})",
            expected=f"the mean, {average.value:.8g}",
            sentence=f"{what} seed is reported as the result; it is "
            f"{average.value - claim.figure.value:.5f} bpb better than the mean",
        )
        return
    early = next((s for s in every if claim.figure.agrees(s.figure)), None)
    if early is not None and not own and not table:
        yield _unpacked(claims, claim, early)
        return
    if scores and len(table) > 1:
        average = mean([figure for _, figure in scores])
        yield _finding(claims, "mean", Severity.CONTRADICTION)(
            line=claim.figure.line,
            found=f"{claim.key} {claim.figure.value:.8g}",
            expected=f"{average.value:.8g}, the mean of {len(scores)} claimed seeds",
            sentence="the result is neither the mean of its seeds nor one of them",
        )
        return
    yield _not_shown(claims, claim, every)


def figures(claims: Claims, runs: list[Log], on_disk: Sequence[float] = ()) -> Findings:
    """V11: every figure of the claim stands in a log, or is a mean of figures that do."""
    seen = {run.seed for run in runs}
    for claim in claims.figures:
        if claim is claims.headline or claim.summary == "std":
            continue
        if claim.seed is not None and claim.seed not in seen:
            continue  # a seed without a log is reported once, not for each of its figures
        pool = [run for run in runs if claim.seed in (None, run.seed)]
        every = [s for run in pool for s in shown(claim.kind, run)]
        fitting = [s for s in every if claim.figure.agrees(s.figure)]
        if claim.seed is None and any(map(claim.figure.agrees, _summaries(claims, claim, runs))):
            continue
        if fitting and not claim.summary:
            is_result = claim.seed is not None and not claim.is_early
            if is_result and all(s.stage is not Stage.PACKED for s in fitting):
                yield _unpacked(claims, claim, fitting[0])
            continue
        if claim.figure.value in on_disk or _is_own_sum(claims, claim, runs, on_disk):
            continue
        elsewhere = [s for run in runs for s in shown(claim.kind, run)]
        if every or elsewhere:
            yield _not_shown(claims, claim, every or elsewhere, elsewhere)


def _summaries(claims: Claims, claim: Claim, runs: list[Log]) -> list[Figure]:
    """What a figure of the whole record may be: a mean, or the extreme that its key names."""
    tables = [list(claims.table(place, claim.kind).values()) for place in (claim.place, ())]
    finals = _finals(claims, runs)
    tables.append([s[-1].figure for run in finals if (s := shown(claim.kind, run))])
    summarise = {"max": largest, "min": smallest}.get(claim.summary, mean)
    found = [summarise(table) for table in tables if table]
    if summarise is mean:
        found += _averages(claim.kind, finals)
    if not claim.summary:
        found += [figure for table in tables for figure in table]
        found += [largest(table) for table in tables if table]
    return found


def _is_own_sum(claims: Claims, claim: Claim, runs: list[Log], on_disk: Sequence[float]) -> bool:
    """A total of weights that a log shows, and code that was counted elsewhere, e.g. minified."""
    if claim.kind != "total":
        return False
    models = [s.figure.value for run in runs for s in shown("model", run)]
    codes = [c.figure.value for c in claims.figures if c.kind == "code"]
    sums = {model + code for model in (*models, *on_disk) for code in (*codes, *on_disk)}
    return claim.figure.value in sums


def _unpacked(claims: Claims, claim: Claim, early: Shown) -> Finding:
    return _finding(claims, "unpacked-score", Severity.BROKEN)(
        line=claim.figure.line,
        found=f"{claim.key} {claim.figure.value:.8g}, the score of {early.place}",
        expected="a score of packed weights",
        sentence=f"that score ({early.label or 'no label'}) was taken before packing; the "
        "artifact has another one",
    )


def _not_shown(
    claims: Claims, claim: Claim, every: list[Shown], elsewhere: Sequence[Shown] = ()
) -> Finding:
    near = min(every, key=lambda s: abs(s.figure.value - claim.figure.value), default=None)
    other = next((s for s in elsewhere if claim.figure.agrees(s.figure)), None)
    unit = _UNITS[claim.kind]
    whose = "" if claim.seed is None else f" of seed {claim.seed}"
    sentence = f"no log{whose} shows this figure for {unit}"
    if other is not None:
        sentence += f"; {other.place} does, a run of seed {other.run.seed}"
    # Milliseconds a step are worked out by hand more often than copied.
    severity = Severity.LOOK if claim.kind == "step_ms" else Severity.CONTRADICTION
    return _finding(claims, "claim-not-in-logs", severity)(
        line=claim.figure.line,
        found=f"{claim.key} {claim.figure.value:.10g}",
        expected=f"{near.figure.value:.10g} ({near.place})" if near else "a log that shows it",
        sentence=sentence,
    )


def _finals(claims: Claims, runs: list[Log]) -> list[Log]:
    """One run for each declared seed: the one that the claims speak of, else the last."""
    table, declared = claims.table((), "bpb"), {seed for seed, _ in claims.seeds}
    chosen: dict[int | str, Log] = {}
    for run in runs:
        key = run.seed if run.seed is not None else run.name
        claimed = table.get(run.seed) if run.seed is not None else None
        if declared and run.seed is not None and run.seed not in declared:
            continue  # a run that is not among the results
        held = chosen.get(key)
        if held is not None and claimed is not None:
            fits = any(claimed.agrees(s.figure) for s in shown("bpb", run))
            if not fits:
                continue
        chosen[key] = run
    return list(chosen.values())


def _averages(kind: str, runs: list[Log]) -> list[Figure]:
    """Means over the runs, of what stands for each and of what all have under one label."""
    tables = [shown(kind, run) for run in runs]
    if not tables or not all(tables):
        return []
    found = [mean([table[-1].figure for table in tables])]
    labels = set.intersection(*({s.label for s in table} for table in tables))
    for label in labels:
        found.append(mean([[s.figure for s in t if s.label == label][-1] for t in tables]))
    return found


def spread(claims: Claims, runs: list[Log]) -> Findings:
    """A standard deviation that is stated is that of the values beside it, or in the logs."""
    for claim in claims.figures:
        if claim.summary != "std" or claim.seed is not None:
            continue
        logged = [s[-1].figure for run in _finals(claims, runs) if (s := shown(claim.kind, run))]
        tables = [list(claims.table(claim.place, claim.kind).values()), logged]
        known = [spreads(table) for table in tables if len(table) > 1]
        if not known or any(claim.figure.agrees(s) for pair in known for s in pair):
            continue
        sample, population = known[0]
        table = next(table for table in tables if len(table) > 1)
        yield _finding(claims, "spread", Severity.CONTRADICTION)(
            line=claim.figure.line,
            found=f"{claim.key} {claim.figure.value:.6g}",
            expected=f"{sample.value:.3g} (of a population {population.value:.3g})",
            sentence=f"the spread of {len(table)} seeds is another one",
        )


def byte_counts(claims: Claims, runs: list[Log]) -> Findings:
    """V5: claimed nats and bpb are of one score and count the bytes of the text."""
    split = next((found for run in runs if (found := log_split(run))), None)
    by_path = {claim.path: claim for claim in claims.figures}
    wrong: list[Finding] = []
    for path, nats in by_path.items():
        if nats.kind != "nats" or nats.summary == "std":
            continue
        key = path[-1]
        names = (key.replace("loss", "bpb"), key.replace("_nats", "").replace("loss", "bpb"))
        bpb = next((c for n in names if (c := by_path.get((*path[:-1], n))) is not None), None)
        ratio = bytes_per_token(nats.figure, bpb.figure) if bpb and bpb is not nats else None
        if ratio is not None:
            wrong += judge_ratio(claims.name, ratio, split)
    yield from wrong[:1]


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
        yield _finding(claims, "best-of-runs", Severity.BROKEN)(
            line=claims.headline.figure.line,
            found=f"the best {len(inside)} of {len(scores)} seeds",
            expected=f"all of them, mean {average.value:.6g}",
            sentence=f"seed {', '.join(map(str, sorted(outside)))} is left out of the result, and "
            "is worse than every seed in it",
        )


def limits(claims: Claims, track: Track) -> Findings:
    """Budgets and cap by the claim's own figures, where no log can tell."""
    hardware = hardware_of(claims)
    for claim in claims.figures:
        figure = claim.figure
        rule = {
            "train_s": ("training-time", track.train_seconds, Severity.BROKEN, "over the budget"),
            "eval_s": (
                "evaluation-time",
                track.eval_seconds,
                overrun_severity(track, hardware),
                overrun_reason(track, hardware),
            ),
            "total": ("size", float(track.cap_bytes), Severity.BROKEN, "over the cap"),
        }.get(claim.kind)
        if rule is not None and figure.value - figure.half > rule[1]:
            id, limit, severity, why = rule
            yield _finding(claims, id, severity)(
                line=figure.line,
                found=f"{claim.key} {figure.value:,.10g}",
                expected=f"at most {limit:,.10g}",
                sentence=f"by the record's own claim: {why}",
            )


def hardware_of(claims: Claims) -> str:
    """What the record says that it ran on."""
    keys = ("hardware", "gpu", "platform")
    found = (claims.get(key) for key in keys)
    return next((str(leaf.value) for leaf in found if leaf and isinstance(leaf.value, str)), "")
