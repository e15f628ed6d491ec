"""What several submissions of one recipe say together, and what their training says again."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from speedrun.cli.screen import say_aside
from speedrun.data.dataset import Dataset
from speedrun.errors import (
    ConfigError,
    FormatError,
    RecordError,
    SpeedrunError,
    SubmissionError,
)
from speedrun.pack.container import read_header
from speedrun.pack.submission import MODEL_NAME
from speedrun.recipes.load import load_recipe
from speedrun.records.record import list_records, read_record, standing_record
from speedrun.records.record import scores as record_scores
from speedrun.records.runs import TABLE, RunRow, read_runs
from speedrun.stats import Summary, summarise
from speedrun.tracks.load import Track
from speedrun.verify.judge import Progress
from speedrun.verify.retrain import retrain
from speedrun.verify.rules import Rule, read_claims
from speedrun.verify.significance import significance
from speedrun.verify.verdict import RuleResult, Status, Verdict

SPAN = 100
"""Seeds this close together were probably counted up, so one that is left out is asked for."""
NOT_COMPARED = ("seed", "summary", "quant", "evaluation")
"""Settings in which runs of one recipe may differ: what a run is packed with is chosen later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Several seeds: their scores, the rules about all of them, and what a reader should know."""

    seeds: tuple[int, ...]
    statuses: tuple[Status, ...]
    scores: tuple[float | None, ...]
    """By submission, as the judge measured them."""
    val_bpb: Summary | None
    """None unless every submission was scored."""
    results: tuple[RuleResult, ...]
    warnings: tuple[str, ...]

    @property
    def status(self) -> Status:
        """The worst of the verdicts and of the rules about all of them."""
        found = {*self.statuses, *(result.status for result in self.results)}
        return next((s for s in (Status.FAIL, Status.UNDECIDED) if s in found), Status.PASS)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a rule is broken, 2 could not be decided."""
        return {Status.PASS: 0, Status.FAIL: 1, Status.UNDECIDED: 2}[self.status]

    def to_dict(self) -> dict[str, Any]:
        """The last element of the JSON array, after the verdicts."""
        return {"status": self.status, **dataclasses.asdict(self)}


def read_standing(text: str, track: Track, dataset: Dataset | None) -> list[float] | None:
    """Scores of the record that `--against` names: its folder, the folder of all records, or bpb.

    Returns None for a folder of records that has none of this track.

    Raises
        ConfigError: it is none of these.
        RecordError: the record is of another track or text.
    """
    folder = Path(text)
    if not folder.is_dir():
        try:
            scores = [float(part) for part in text.split(",")]
        except ValueError:
            scores = []
        if not scores or not all(0 < score < 1e6 for score in scores):
            raise ConfigError(
                f"--against {text!r}: expected a record's folder, or scores like 1.2244,1.2251"
            )
        return scores
    if (folder / "record.json").exists():
        record = read_record(folder)
    elif found := standing_record(
        list_records(folder, track.name), track, dataset.fingerprint if dataset else None
    ):
        record = found
    else:
        return None
    expected = {"track": track.name, "track_version": track.version}
    if dataset is not None:
        expected["data_fingerprint"] = dataset.fingerprint
    for key, value in expected.items():
        if getattr(record, key) != value:
            raise RecordError(
                f"{record.name}: {key} is {getattr(record, key)!r}, here it is {value!r}; scores "
                "compare within one of them only"
            )
    return record_scores(record)


def judge_together(
    submissions: Sequence[Path],
    verdicts: Sequence[Verdict],
    track: Track,
    *,
    against: bool,
    standing: Sequence[float] | None,
    runs: Path | None,
    more: Sequence[RuleResult] = (),
) -> Together:
    """Mean, spread, significance if a record is named, and warnings.

    Args:
        submissions, verdicts: One for each seed.
        track: What they were judged on.
        against: Whether `--against` was given.
        standing: What it named; see `read_standing`.
        runs: Folder of the table of local runs; by default wherever the submissions lie.
        more: Results of other rules about all of them.
    """
    claims = [_claims(folder) for folder in submissions]
    recipes = [settings_of(folder) for folder in submissions]
    seeds = tuple(claim["seed"] for claim in claims if type(claim.get("seed")) is int)
    found = [verdict.measurement for verdict in verdicts if verdict.measurement is not None]
    scores = [measurement.bpb for measurement in found]
    is_whole = len(found) == len(verdicts)
    others = undeclared_runs(submissions, track, runs)
    warnings = [*_seed_warnings(seeds), *_run_warnings(others, len(submissions))]
    results: list[RuleResult] = [*more]
    if mixed := differences(recipes):
        warnings.append(f"these are not seeds of one recipe: they differ in {mixed}")
    if against:
        if mixed or not is_whole:
            problem = f"they differ in {mixed}" if mixed else "a submission has no score"
            results.append(Rule("significance").undecided(f"nothing to test: {problem}"))
        else:
            results.append(
                significance(
                    scores,
                    standing,
                    track,
                    num_tokens=found[0].num_tokens,
                    num_bytes=found[0].num_bytes,
                    seeds=seeds,
                    undeclared=[row.val_bpb for row in others],
                )
            )
    return Together(
        seeds=seeds,
        statuses=tuple(verdict.status for verdict in verdicts),
        scores=tuple(v.measurement.bpb if v.measurement else None for v in verdicts),
        val_bpb=summarise(scores) if is_whole and scores else None,
        results=tuple(results),
        warnings=tuple(warnings),
    )


def print_together(together: Together, submissions: Sequence[Path], console: Console) -> None:
    """A row for each submission, then what they say together."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("submission", "verdict", "val_bpb"):
        table.add_column(heading, overflow="fold")
    rows = zip(submissions, together.statuses, together.scores, strict=True)
    for folder, status, bpb in rows:
        table.add_row(Text(str(folder)), Text(status), Text("" if bpb is None else f"{bpb:.6f}"))
    console.print(table)
    if (found := together.val_bpb) is not None:
        said = f"val_bpb {found}"
        if found.num_seeds > 1:
            said += f", 95 % interval {found.low:.4f} to {found.high:.4f}"
        console.print(Text(said), soft_wrap=True)
    for result in together.results:
        parts = (result.measured, result.limit and f"limit {result.limit}", result.evidence)
        said = "; ".join(part for part in (*parts, result.fix) if part)
        console.print(Text(f"{result.status} {result.id}: {said}"), soft_wrap=True)
    if not together.results:
        console.print("compared with no record; name one with --against")
    for warning in together.warnings:
        console.print(Text(f"warning: {warning}"), soft_wrap=True)


def retrain_each(
    submissions: Sequence[Path],
    verdicts: Sequence[Verdict],
    track: Track,
    dataset: Dataset | None,
    *,
    standing: Sequence[float] | None,
    spread: float | None,
    allow_unsandboxed: bool,
    show: Progress | None,
) -> list[Verdict]:
    """The verdicts with a rule more: the submission's own training was run again."""
    claimed = [_claims(folder).get("val_bpb") for folder in submissions]
    scores = [float(value) for value in claimed if isinstance(value, float) and 0 < value < 1e6]
    longer = []
    for folder, verdict in zip(submissions, verdicts, strict=True):
        if verdict.status is Status.FAIL:
            result = Rule("retrain").undecided("not run: the submission breaks another rule")
        else:
            say_aside(f"{folder}: training again, up to {track.train_seconds:g} s and set-up")
            result = retrain(
                folder,
                track,
                dataset,
                claims=scores,
                record=standing or (),
                spread=spread,
                allow_unsandboxed=allow_unsandboxed,
                progress=show,
            )
        longer.append(dataclasses.replace(verdict, results=(*verdict.results, result)))
    return longer


def _claims(folder: Path) -> dict[str, Any]:
    try:
        return read_claims(folder)
    except SubmissionError:
        return {}  # its verdict says so


def _tables(submissions: Sequence[Path]) -> list[Path]:
    """Folders with a table of runs: where the submissions lie, and the usual one."""
    places = [*(folder.resolve().parent.parent for folder in submissions), Path("runs").resolve()]
    return [place for place in dict.fromkeys(places) if (place / TABLE).is_file()]


def settings_of(folder: Path) -> dict[str, Any]:
    """What `model.srz` says about its run, or about the predictor if there was none."""
    try:
        meta = read_header((folder / MODEL_NAME).read_bytes()).meta
    except (OSError, FormatError):
        return {}  # its verdict says so
    return meta["run"] if isinstance(meta.get("run"), dict) else meta


def undeclared_runs(submissions: Sequence[Path], track: Track, runs: Path | None) -> list[RunRow]:
    """Runs of this recipe in the local tables that were not handed in.

    The table is in the folder `runs`, by default wherever the submissions lie.
    """
    places = [runs] if runs else _tables(submissions)
    claims, recipe = [_claims(folder) for folder in submissions], settings_of(submissions[0])
    handed_in = {
        (claim.get("seed"), claim.get("step_stop"), _rounded(claim.get("wallclock_seconds")))
        for claim in claims
    }
    return [
        row
        for place in places
        for row in read_runs(place)
        if (row.recipe, row.track, row.track_version)
        == (recipe.get("name"), track.name, track.version)
        and (row.seed, row.num_steps, _rounded(row.train_seconds)) not in handed_in
        and _is_same(place / row.folder, recipe)
    ]


def _rounded(seconds: object) -> float | None:
    """As the table has it."""
    return round(seconds, 3) if isinstance(seconds, int | float) else None


def _is_same(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether a run had these settings; where nobody can tell any more, its name has to do."""
    try:
        ran = load_recipe(str(folder / "recipe.toml")).to_dict()
    except (OSError, SpeedrunError):
        return True
    return not differences([json.loads(json.dumps(ran)), recipe])


def differences(recipes: Sequence[dict[str, Any]]) -> str:
    """The first setting in which recipes differ; seeds and packing do not count."""
    first = recipes[0]
    for other in recipes[1:]:
        for key in sorted((first.keys() | other.keys()) - {*NOT_COMPARED}):
            one, two = first.get(key), other.get(key)
            if one == two:
                continue
            if isinstance(one, dict) and isinstance(two, dict):
                names = sorted(one.keys() | two.keys())
                return f"{key}.{next(n for n in names if one.get(n) != two.get(n))}"
            return key
    return ""


def _seed_warnings(seeds: Sequence[int]) -> list[str]:
    warnings = [
        f"seed {seed} is handed in {times} times: a repeated seed is no new evidence"
        for seed, times in Counter(seeds).items()
        if times > 1
    ]
    span = range(min(seeds, default=0), max(seeds, default=0))
    left_out = [seed for seed in span if seed not in seeds] if len(span) <= SPAN else []
    if left_out:
        shown = ", ".join(map(str, left_out[:5])) + (", …" if left_out[5:] else "")
        warnings.append(
            f"seeds {', '.join(map(str, sorted(set(seeds))))} leave out {shown}: if they were run "
            "too, hand them in, or these are the best of more"
        )
    return warnings


def _run_warnings(others: Sequence[RunRow], handed_in: int) -> list[str]:
    if not others:
        return []
    seeds = ", ".join(str(row.seed) for row in others[:5]) + (", …" if others[5:] else "")
    scores = [row.val_bpb for row in others if row.val_bpb is not None]
    best = f", best {min(scores):.4f}, mean {sum(scores) / len(scores):.4f}" if scores else ""
    return [
        f"the table of runs has {len(others)} more of this recipe (seeds {seeds}{best}): the "
        f"{handed_in} handed in are a choice, and a mean over a choice is too good"
    ]
