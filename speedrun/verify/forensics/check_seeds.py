"""Checks of the logs of one record against each other: which runs there are, and whose they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from speedrun.tracks.load import Track
from speedrun.verify.forensics.claims import Claims
from speedrun.verify.forensics.figures import Figure
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log

Findings = Iterator[Finding]

_EARLY_STEPS = 10
"""Losses of the first steps hardly depend on the seed."""
_COMPARED = 1_000
"""Step lines of a log that are compared with other logs."""
_OWN = re.compile(r"seed|run_id|logfile|rank|name|path|dir$|_files$|master|port|device")
"""Settings that may differ between the runs of one record."""


def runs_of(logs: list[Log]) -> list[Log]:
    """One log for each run: of identical files the one whose name states its seed."""
    best: dict[str, Log] = {}
    for log in logs:
        held = best.get(log.sha256)
        if held is None or (held.name_seed is None and log.name_seed is not None):
            best[log.sha256] = log
    return list(best.values())


def copies(logs: list[Log]) -> Findings:
    """No file is another one under a new name, and no two seeds have the same losses."""
    for index, log in enumerate(logs):
        twin = next((other for other in logs[:index] if other.sha256 == log.sha256), None)
        if twin is None:
            continue
        seeds = {n[0] for n in (log.name_seed, twin.name_seed) if n is not None and n[1]}
        is_claim = len(seeds) == 2
        yield Finding(
            id="copied-log",
            severity=Severity.BROKEN if is_claim else Severity.LOOK,
            file=log.name,
            line=1,
            found=f"the same bytes as {twin.name}",
            expected="a log of a run of its own",
            sentence="one run is handed in as two seeds" if is_claim else "it counts once",
        )
    runs = runs_of(logs)
    losses = [_losses(run) for run in runs]
    for index, log in enumerate(runs):
        twin = next(
            (o for i, o in enumerate(runs[:index]) if _are_equal(losses[index], losses[i])), None
        )
        if twin is not None and twin.seed != log.seed:
            yield Finding(
                id="same-run",
                severity=Severity.BROKEN,
                file=log.name,
                line=next(step.line for step in log.steps if step.step > _EARLY_STEPS),
                found=f"the losses of seed {twin.seed} in {twin.name}",
                expected=f"a run of seed {log.seed}",
                sentence="every training loss that both logs show is equal: a copy with another "
                "seed written into it",
            )


def _are_equal(mine: dict[int, float], theirs: dict[int, float]) -> bool:
    """Are the losses that both show the same, step by step?"""
    shared = mine.keys() & theirs.keys()
    return len(shared) >= 3 and all(mine[step] == theirs[step] for step in shared)


def _losses(log: Log) -> dict[int, float]:
    """The first losses that depend on the seed, by step."""
    late = ((s.step, s.train_nats) for s in log.steps if s.step > _EARLY_STEPS)
    return dict(islice(((step, nats.value) for step, nats in late if nats), _COMPARED))


def seeds(runs: list[Log], claims: Claims | None, track: Track | None, track_text: str) -> Findings:
    """V10 and V11: enough seeds, each once, each with a log, and no log beside them."""
    found = {run.seed for run in runs if run.seed is not None}
    declared = claims.seeds if claims else []
    if claims is not None:
        yield from _declared_seeds(runs, found, claims)
    if track is None or not runs:
        return
    num_seeds = len(found) + sum(run.seed is None for run in runs)
    if num_seeds < track.record.seeds:
        is_record = "non" not in track_text.lower() and "unlimited" not in track.name
        first = declared[0][1] if declared else 1
        if claims and claims.headline and not declared:
            first = claims.headline.figure.line
        yield Finding(
            id="too-few-seeds",
            severity=Severity.BROKEN if is_record else Severity.LOOK,
            file=claims.name if claims else runs[0].name,
            line=first,
            found=f"logs of {num_seeds} seed{'s' if num_seeds > 1 else ''}",
            expected=f"at least {track.record.seeds}",
            sentence=f"a gain at p < {track.record.p_value:g} cannot be shown by fewer runs"
            + ("" if is_record else "; this is not handed in as a record"),
        )


def _declared_seeds(runs: list[Log], found: set[int], claims: Claims) -> Findings:
    declared = claims.seeds
    counts = Counter(seed for seed, _ in declared)
    lines = dict(reversed(declared))
    for seed, count in counts.items():
        if count > 1:
            yield Finding(
                id="seed-repeated",
                severity=Severity.BROKEN,
                file=claims.name,
                line=lines[seed],
                found=f"seed {seed} {count} times",
                expected="every seed once",
                sentence="a run that is counted twice makes the spread smaller than it is",
            )
    entries = claims.table((), "bpb").keys()
    if declared and entries and set(entries) != set(counts):
        odd = sorted(set(entries) ^ set(counts))
        yield Finding(
            id="seed-entries",
            severity=Severity.CONTRADICTION,
            file=claims.name,
            line=declared[0][1],
            found=f"seeds {sorted(counts)}",
            expected=f"those with results, {sorted(entries)}",
            sentence=f"seed {', '.join(map(str, odd))} is in one of the two lists only",
        )
    anonymous = sum(run.seed is None for run in runs)
    missing = [seed for seed in counts if seed not in found]
    if runs and len(missing) > anonymous:
        yield Finding(
            id="seed-without-log",
            severity=Severity.CONTRADICTION,
            file=claims.name,
            line=lines[missing[0]],
            found=f"seed {', '.join(map(str, missing))}",
            expected="a log for every seed",
            sentence=f"{len(missing)} of {len(counts)} declared seeds have no log, so nothing "
            "backs their scores",
        )
    if not counts:
        return
    values = _claimed_scores(claims)
    for run in runs:
        if run.seed is None or run.final is None:
            continue
        if run.seed not in counts:
            what = f"seed {run.seed} is not declared in {claims.name}"
        elif values and not any(score.bpb.agrees(v) for score in run.scores for v in values):
            what = f"no claim in {claims.name} has a score of this run"
        else:
            continue
        yield Finding(
            id="log-without-entry",
            severity=Severity.LOOK,
            file=run.name,
            line=run.final.line,
            found=f"a run of seed {run.seed} with val_bpb {run.final.bpb.value:.6g}",
            expected="every run among the claims",
            sentence=f"{what}: a run that was made and not counted",
        )


def _claimed_scores(claims: Claims) -> list[Figure]:
    return [c.figure for c in claims.figures if c.kind == "bpb" and c.seed is not None]


def code_sizes(runs: list[Log]) -> Findings:
    """All runs used the same script."""
    sizes: dict[tuple[int, ...], Log] = {}
    for run in runs:
        codes = [size for size in run.sizes if size.part == "code"]
        if codes:
            sizes.setdefault(tuple(size.bytes for size in codes), run)
    if len(sizes) > 1:
        (first, held), (other, log) = list(sizes.items())[:2]
        line = [size.line for size in log.sizes if size.part == "code"][-1]
        yield Finding(
            id="scripts-differ",
            severity=Severity.LOOK,
            file=log.name,
            line=line,
            found=f"code of {other[-1]:,} bytes",
            expected=f"{first[-1]:,}, as in {held.name}",
            sentence=f"the runs used {len(sizes)} different scripts",
        )


def settings_differ(runs: list[Log]) -> Findings:
    """All seeds ran with the same settings."""
    full = [run for run in runs if len(run.settings) >= 8]
    for run in full[1:]:
        first, other = full[0].settings, run.settings
        differing = [
            key
            for key in sorted(first.keys() | other.keys())
            if not _OWN.search(key) and first.get(key, ("",))[0] != other.get(key, ("",))[0]
        ]
        if differing:
            key = next((key for key in differing if key in other), differing[0])
            shown = [
                f"{key} {other.get(key, ('-', 0))[0]} not {first.get(key, ('-', 0))[0]}"
                for key in differing[:4]
            ]
            yield Finding(
                id="settings-differ",
                severity=Severity.LOOK,
                file=run.name,
                line=other.get(key, ("", 1))[1],
                found="; ".join(shown),
                expected=f"the settings of {full[0].name}",
                sentence=f"{len(differing)} settings differ between the runs of one record",
            )
