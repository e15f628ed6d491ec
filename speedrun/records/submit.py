"""From one judged submission for each seed to the folder that is handed in, in our form.

`golf_folder` writes the other form. Both state the same facts, all of which are read from the
parts: their claims, ledgers, verdicts and the recipe in their weights.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedrun.clock import Phase, read_ledger
from speedrun.config import RunConfig
from speedrun.errors import SubmissionError
from speedrun.files import atomic_path
from speedrun.pack.parts import part_name
from speedrun.pack.submission import SizeReport, counted_bytes, to_json, write_manifest
from speedrun.recipes.load import write_recipe
from speedrun.records.filing import read_claims, recipe_of
from speedrun.tracks.load import Track
from speedrun.verify.verdict import Status, Verdict

SCHEMA_VERSION = 2
"""Of the `submission.json` of several seeds; `pack/SUBMISSION.md` has its keys. 1 is one seed's."""
ANONYMOUS = "anonymous"
_FIGURES = ("val_bpb", "val_loss", "eval_time_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One seed: its folder, and what is read from it."""

    folder: Path
    verdict: Verdict
    claims: dict[str, Any]
    phases: tuple[Phase, ...]
    size: SizeReport

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.claims["seed"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What only its author knows about a submission."""

    name: str
    """A short title."""
    author: str
    date: str
    github_id: str = ""
    blurb: str = ""
    """What is new, in a sentence or two."""
    based_on: str = ""
    """Name of the record that it builds on."""
    runs_not_handed_in: int = 0
    """Further runs of the recipe in the local table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandIn:
    """All that is written: the seeds in order, and what is known of them together."""

    track: Track
    parts: tuple[Part, ...]
    told: Told
    recipe: RunConfig | None
    """None for a predictor of the author's own."""
    parent: RunConfig | None = None
    """The recipe that the technique table compares with."""
    parent_name: str = ""

    def column(self, key: str) -> list[float]:
        """One claim of every seed."""
        return [float(part.claims[key]) for part in self.parts]


def read_part(folder: Path, verdict: Verdict, track: Track) -> Part:
    """Read what a submission of one seed says of itself.

    Raises
        RecordError: its claims cannot be read.
        SubmissionError: they lack a figure, or its ledger cannot be read.
    """
    claims = read_claims(folder)
    for key in _FIGURES:
        if type(claims.get(key)) not in (int, float):
            raise SubmissionError(f"{folder}: submission.json needs the number {key}; pack again")
    return Part(
        folder=folder,
        verdict=verdict,
        claims=claims,
        phases=tuple(read_ledger(folder / "logs" / "ledger.jsonl")),
        size=counted_bytes(folder, track),
    )


def obstacles(parts: Sequence[Part], track: Track, *, is_record: bool) -> list[str]:
    """What a judge would not let pass, each with what mends it."""
    found = []
    for part in parts:
        if part.verdict.status is Status.FAIL:
            found += [
                f"{part.folder}: {result.id} fails ({result.measured}, limit {result.limit}"
                f"{'; ' + result.evidence if result.evidence else ''}): {result.fix}"
                for result in part.verdict.results
                if result.status is Status.FAIL
            ]
        elif part.verdict.measurement is None:
            found.append(f"{part.folder}: no score was measured; `speedrun verify` says why")
    twice = [seed for seed, times in Counter(part.seed for part in parts).items() if times > 1]
    if twice:
        found.append(f"seed {twice[0]} comes more than once: give one run for each seed")
    if is_record and len(parts) < track.record.seeds:
        free = max((part.seed for part in parts), default=41) + 1
        missing = track.record.seeds - len(parts)
        found.append(
            f"{len(parts)} seeds, {track.name} asks for {track.record.seeds}: run "
            f"`speedrun run --seed {free} --seeds {missing}` with the same recipe, or hand in a "
            "--non-record"
        )
    for key in ("data_fingerprint", "track", "kind"):
        values = {str(part.claims.get(key)) for part in parts}
        if len(values) > 1:
            found.append(f"the runs differ in {key} ({', '.join(sorted(values))}): give like ones")
    return found


def hand_in(
    parts: Sequence[Part], track: Track, told: Told, parent: tuple[str, RunConfig] | None
) -> HandIn:
    """Put together what is known, seeds in order.

    Raises
        RecordError: weights do not open.
    """
    ordered = tuple(sorted(parts, key=lambda part: part.seed))
    return HandIn(
        track=track,
        parts=ordered,
        told=told,
        recipe=recipe_of(ordered[0].folder),
        parent=parent[1] if parent else None,
        parent_name=parent[0] if parent else "",
    )


def claims_of(given: HandIn) -> dict[str, Any]:
    """The `submission.json` of the whole; `pack/SUBMISSION.md` describes every key."""
    first, told, track = given.parts[0].claims, given.told, given.track
    bpb, loss = given.column("val_bpb"), given.column("val_loss")
    seconds, steps = given.column("wallclock_seconds"), given.column("step_stop")
    evaluated = given.column("eval_time_seconds")
    totals = [part.size.total for part in given.parts]
    largest = max(given.parts, key=lambda part: part.size.total)
    return {
        "schema_version": SCHEMA_VERSION,
        "author": told.author,
        "github_id": told.github_id,
        "name": told.name,
        "blurb": told.blurb,
        "date": told.date,
        "track": track.name,
        "track_version": track.version,
        "val_loss": statistics.fmean(loss),
        "val_loss_std": _spread(loss),
        "val_bpb": statistics.fmean(bpb),
        "val_bpb_std": _spread(bpb),
        "seeds": [part.seed for part in given.parts],
        "seed_results": {str(part.seed): _seed_result(part) for part in given.parts},
        "bytes_total": largest.size.total,
        "bytes_code": largest.size.code,
        "bytes_model": largest.size.model,
        "artifact_bytes_mean": round(statistics.fmean(totals)),
        "artifact_bytes_max": max(totals),
        "train_steps_mean": statistics.fmean(steps),
        "wallclock_seconds": max(seconds),
        "train_time_s_mean": statistics.fmean(seconds),
        "step_avg_ms_mean": 1000 * sum(seconds) / max(sum(steps), 1),
        "eval_time_seconds": max(evaluated),
        "eval_time_s_mean": statistics.fmean(evaluated),
        "model_params": first.get("model_params"),
        "kind": first.get("kind", "fixed"),
        "recipe": given.recipe.name if given.recipe else None,
        "based_on": told.based_on or None,
        "hardware": first["hardware"],
        "pytorch_version": first.get("pytorch_version"),
        "python_version": given.parts[0].verdict.machine.rpartition("Python ")[2],
        "data_fingerprint": first["data_fingerprint"],
        "runs_not_handed_in": told.runs_not_handed_in,
    }


def write_whole(out: Path, given: HandIn, readme: str) -> None:
    """Write the folder with a complete submission for each seed in it.

    Raises
        OutputError: the folder cannot be written or exists; then nothing is left behind.
    """
    verdicts = {str(part.seed): part.verdict.to_dict() for part in given.parts}
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        for part in given.parts:
            copy_part(part.folder, folder / part_name(part.seed))
        (folder / "submission.json").write_bytes(to_json(claims_of(given), "submission.json"))
        (folder / "verdict.json").write_text(json.dumps(verdicts, indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(readme, encoding="utf-8")
        if given.recipe is not None:
            write_recipe(folder / "recipe.toml", given.recipe)
        write_manifest(folder)


def copy_part(folder: Path, target: Path) -> None:
    """Copy a judged submission as it is: its own manifest lists every file."""
    shutil.copytree(folder, target)


def milliseconds_per_step(part: Part) -> float:
    """Over the whole budgeted time."""
    return 1000 * float(part.claims["wallclock_seconds"]) / max(int(part.claims["step_stop"]), 1)


def _seed_result(part: Part) -> dict[str, Any]:
    claims = part.claims
    return {
        "val_loss": claims["val_loss"],
        "val_bpb": claims["val_bpb"],
        "pre_quant_val_bpb": claims.get("pre_quant_val_bpb"),
        "artifact_bytes": part.size.total,
        "bytes_code": part.size.code,
        "bytes_model": part.size.model,
        "steps": claims["step_stop"],
        "step_avg_ms": milliseconds_per_step(part),
        "train_time_s": claims["wallclock_seconds"],
        "eval_time_s": claims.get("eval_time_seconds"),
    }


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
