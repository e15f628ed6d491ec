"""Checks of `submission.json` against the logs and against itself: is what it claims what happened?

A claim holds if some log shows it, to the digits that it has, or if it is the mean, the largest or
the smallest of what the logs show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from speedrun.tracks.load import Track
from speedrun.verify.forensics.check_result import (
    best_of_runs,
    headline,
    not_shown,
    spread,
    unpacked,
)
from speedrun.verify.forensics.check_scores import judge_ratio, log_split
from speedrun.verify.forensics.check_times import overrun_reason, overrun_severity
from speedrun.verify.forensics.claims import Claim, Claims, finding_about
from speedrun.verify.forensics.dialects import admission
from speedrun.verify.forensics.evidence import Evidence
from speedrun.verify.forensics.figures import Figure, bytes_per_token, largest, mean, smallest
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, Stage

Findings = Iterator[Finding]

_FLAGS = {
    "training-time": re.compile(r"train.*under|under.*train"),
    "evaluation-time": re.compile(r"eval.*under|under.*eval"),
    "size": re.compile(r"(?:artifact|size|bytes).*under|under.*(?:16|mb|cap)"),
    "too-few-seeds": re.compile(r"(?:three|3)_seeds"),
}
"""What a compliance flag denies if it is true."""


def check_claims(
    claims: Claims, runs: list[Log], track: Track | None, on_disk: Sequence[float] = ()
) -> Findings:
    """Everything that one claim file shows; `on_disk` are the sizes of files beside it."""
    logs = Evidence(runs)
    yield from form(claims)
    yield from admitted(claims)
    yield from spread(claims, logs)
    yield from byte_counts(claims, runs)
    yield from best_of_runs(claims, runs)
    if runs:
        yield from headline(claims, logs)
        yield from figures(claims, logs, on_disk)
    elif track is not None:
        yield from limits(claims, track)


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
        yield finding_about(claims, "missing-fields", Severity.LOOK)(
            line=1,
            found=f"no {', no '.join(missing)}",
            expected="all of them",
            sentence="what is not claimed could not be checked",
        )
    for leaf in claims.repeated[:3]:
        yield finding_about(claims, "repeated-key", Severity.CONTRADICTION)(
            line=leaf.line,
            found=f"{leaf.key} a second time: {leaf.text}",
            expected="every key once",
            sentence="readers differ in which of the two they believe",
        )
    for leaf in claims.odd[:3]:
        yield finding_about(claims, "not-a-number", Severity.CONTRADICTION)(
            line=leaf.line,
            found=f"{leaf.key} = {leaf.text}",
            expected="a number, or null",
            sentence="this is not JSON, and no result",
        )


def admitted(claims: Claims) -> Findings:
    """Words and flags with which a record admits what the rules forbid."""
    for leaf in claims.leaves:
        if isinstance(leaf.value, str) and (words := admission(leaf.value)):
            yield finding_about(claims, "validation-use", Severity.LOOK)(
                line=leaf.line,
                found=f"{leaf.path[-1]}: {words!r}",
                expected="validation text is scored only",
                sentence="the record speaks of validation text in training or calibration",
            )
        elif leaf.value is False and leaf.path[0] == "compliance":
            yield finding_about(claims, "compliance", Severity.LOOK)(
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
                yield finding_about(claims, "compliance", Severity.CONTRADICTION)(
                    line=leaf.line,
                    found=f"{leaf.key} is true",
                    expected=f"false: {broken.found} ({broken.file}:{broken.line})",
                    sentence=f"the record declares to comply where {id} is broken",
                )


def figures(claims: Claims, logs: Evidence, on_disk: Sequence[float] = ()) -> Findings:
    """V11: every figure of the claim stands in a log, or is a mean of figures that do."""
    seen = {run.seed for run in logs.runs}
    for claim in claims.figures:
        if claim is claims.headline or claim.summary == "std":
            continue
        if claim.seed is not None and claim.seed not in seen:
            continue  # a seed without a log is reported once, not for each of its figures
        every = logs.all(claim.kind, claim.seed)
        fitting = [s for s in every if claim.figure.agrees(s.figure)]
        if claim.seed is None and any(map(claim.figure.agrees, _summaries(claims, claim, logs))):
            continue
        if fitting and not claim.summary:
            is_result = claim.seed is not None and not claim.is_early
            if is_result and all(s.stage is not Stage.PACKED for s in fitting):
                yield unpacked(claims, claim, fitting[0])
            continue
        if claim.figure.value in on_disk or _is_own_sum(claims, claim, logs, on_disk):
            continue
        elsewhere = logs.all(claim.kind)
        if every or elsewhere:
            yield not_shown(claims, claim, every or elsewhere, elsewhere)


def _summaries(claims: Claims, claim: Claim, logs: Evidence) -> list[Figure]:
    """What a figure of the whole record may be: a mean, or the extreme that its key names."""
    tables = [list(claims.table(place, claim.kind).values()) for place in (claim.place, ())]
    finals = logs.finals(claims)
    tables.append([s[-1].figure for run in finals if (s := logs.of(claim.kind, run))])
    summarise = {"max": largest, "min": smallest}.get(claim.summary, mean)
    found = [summarise(table) for table in tables if table]
    if summarise is mean:
        found += logs.averages(claim.kind, claims)
    if not claim.summary:
        found += [figure for table in tables for figure in table]
        found += [largest(table) for table in tables if table]
    return found


def _is_own_sum(claims: Claims, claim: Claim, logs: Evidence, on_disk: Sequence[float]) -> bool:
    """A total of weights that a log shows, and code that was counted elsewhere, e.g. minified."""
    if claim.kind != "total":
        return False
    models = {shown.figure.value for shown in logs.all("model")}
    codes = [c.figure.value for c in claims.figures if c.kind == "code"]
    sums = {model + code for model in (*models, *on_disk) for code in (*codes, *on_disk)}
    return claim.figure.value in sums


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
            yield finding_about(claims, id, severity)(
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
