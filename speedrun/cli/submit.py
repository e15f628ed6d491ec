"""`speedrun submit`: from one run for each seed to the folder that is handed in."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speedrun.cli.screen import say_aside
from speedrun.cli.verify import Level, claimed_track

if TYPE_CHECKING:
    from speedrun.config import RunConfig
    from speedrun.data.dataset import Dataset
    from speedrun.records.submit import Part
    from speedrun.tracks.load import Track
    from speedrun.verify.verdict import Verdict


class Form(StrEnum):
    """Which folder is written."""

    native = "native"
    golf = "golf"


def submit(
    runs: list[Path] = typer.Argument(
        metavar="RUN", help="Run folders or submissions, one for each seed."
    ),
    out: Path = typer.Option(..., metavar="FOLDER", help="Folder to hand in, to be made."),
    form: Form = typer.Option(
        Form.native, "--format", help="native is judged here; golf is the golf repository's form."
    ),
    name: str = typer.Option(
        "", metavar="TEXT", help="Short title. Default: the recipe's name, or the folder's."
    ),
    blurb: str = typer.Option("", metavar="TEXT", help="What is new, in a sentence or two."),
    author: str = typer.Option("", metavar="NAME", help="Default: as the runs have it."),
    github_id: str = typer.Option("", metavar="NAME", help="Account to credit."),
    based_on: Path | None = typer.Option(
        None, metavar="RECORD", help="Folder of the record that this builds on."
    ),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: their own."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    level: Level = typer.Option(
        Level.score, help="How deep they must have been judged; else they are judged now."
    ),
    non_record: bool = typer.Option(
        False, "--non-record", help="No claim to a record: fewer seeds will do."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print submission.json."),
) -> None:
    """Write a complete submission, refusing what the judge would not let pass.

    README, claims, tables and logs come from the runs. Verdicts that the runs
    bring are taken if they are about these very files.
    """
    from speedrun.cli.seeds import differences, settings_of, undeclared_runs
    from speedrun.errors import SubmissionError
    from speedrun.pack.parts import every_seed, part_folders
    from speedrun.records.golf_folder import golf_claims, golf_obstacles, write_golf
    from speedrun.records.record import read_record, today
    from speedrun.records.submit import Told, claims_of, hand_in, obstacles, write_whole
    from speedrun.records.submit_readme import golf_lines, reproduce_lines, submission_readme
    from speedrun.tracks.load import load_track
    from speedrun.verify.rules import read_claims

    folders = every_seed(map(_submission_of, runs))
    chosen = load_track(track or claimed_track(folders[0]))
    parts = _judged(folders, chosen, data, level)
    problems = obstacles(parts, chosen, is_record=not non_record)
    if mixed := differences([settings_of(part.folder) for part in parts]):
        problems.append(f"the runs are no seeds of one recipe, they differ in {mixed}")
    if out.exists():
        problems.append(f"{out} is there already: choose another --out")
    others = undeclared_runs(folders, chosen, None)
    # What a whole submission was told before is asked again only if it changes.
    claims = read_claims(runs[0]) if part_folders(runs[0]) else parts[0].claims
    told = Told(
        name=name or str(claims.get("name") or out.name),
        author=author or os.environ.get("SPEEDRUN_AUTHOR") or str(claims["author"]),
        github_id=github_id or str(claims.get("github_id") or ""),
        blurb=blurb or str(claims.get("blurb") or ""),
        date=today(),
        based_on=read_record(based_on).name if based_on else str(claims.get("based_on") or ""),
        runs_not_handed_in=len(others),
    )
    given = hand_in(parts, chosen, told, _parent(parts, based_on))
    if form is Form.golf:
        problems += golf_obstacles(out, given)
    if problems:
        raise SubmissionError("not handed in: " + "; ".join(problems))
    for warning in _warnings(parts, told.author, len(others)):
        say_aside(f"warning: {warning}")
    if form is Form.golf:
        write_golf(out, given, submission_readme(given, reproduce=golf_lines(given)))
    else:
        lines = reproduce_lines(given, out.as_posix())
        write_whole(out, given, submission_readme(given, reproduce=lines))
    written = golf_claims(given) if form is Form.golf else claims_of(given)
    if as_json:
        print(json.dumps(written, indent=2))
        return
    print(
        f"{out}: {len(parts)} seeds, {written['val_bpb']:.5f} bpb "
        f"(standard deviation {written['val_bpb_std']:.5f}), {written['bytes_total']:,} bytes"
    )
    if form is Form.native:
        print(f"next: speedrun verify {out}; speedrun records add {out} --slug my-idea")


def _submission_of(run: Path) -> Path:
    """The submission in a run folder, or the folder itself."""
    from speedrun.errors import SubmissionError

    if not run.is_dir():
        raise SubmissionError(f"{run} is not a folder; expected a run or a submission")
    if (run / "submission.json").is_file():
        return run
    if (run / "submission").is_dir():
        return run / "submission"
    raise SubmissionError(
        f"{run} holds no submission; finish it with `speedrun run --resume {run}`, or pack it with "
        f"`speedrun pack {run}`"
    )


def _judged(folders: list[Path], track: Track, data: Path | None, level: Level) -> list[Part]:
    """The parts with a verdict each: the one beside it, if it fits, or a new one."""
    from speedrun.data.corpus import open_corpus
    from speedrun.records.submit import read_part
    from speedrun.verify.judge import verify_submission

    parts: list[Part] = []
    dataset: Dataset | None = None
    for folder in folders:
        if (verdict := _verdict_beside(folder, track, level)) is None:
            say_aside(f"{folder}: judging at level {level}")
            dataset = dataset or open_corpus(data or track.corpus, echo=say_aside)
            # One's own code may run without walls; the verdict then says so.
            verdict = verify_submission(
                folder, track, dataset, level=level.value, allow_unsandboxed=True
            )
        parts.append(read_part(folder, verdict, track))
    return parts


def _verdict_beside(folder: Path, track: Track, level: Level) -> Verdict | None:
    """The verdict in the folder around a submission, if it is about these very files and rules."""
    from speedrun.errors import RecordError
    from speedrun.files import sha256_file
    from speedrun.verify.judge import LEVELS
    from speedrun.verify.rules import files, hashes
    from speedrun.verify.verdict import RULES_VERSION, Status, verdict_from

    path = folder.parent / "verdict.json"
    try:
        values = json.loads(path.read_bytes())
        if "results" not in values:  # beside the parts of a whole: the verdicts of all of them
            values = values[folder.name.removeprefix("seed")]
        verdict = verdict_from(values, path)
        manifest = sha256_file(folder / "manifest.json")
        depth = LEVELS.index(verdict.level)
    except (RecordError, OSError, ValueError, KeyError, TypeError):
        return None
    fits = (
        verdict.manifest_sha256 == manifest
        and {files(folder).status, hashes(folder).status} == {Status.PASS}
        and (verdict.track, verdict.track_version) == (track.name, track.version)
        and verdict.rules_version == RULES_VERSION
        and depth >= LEVELS.index(level.value)
    )
    return verdict if fits else None


def _parent(parts: list[Part], based_on: Path | None) -> tuple[str, RunConfig] | None:
    """What the recipe is compared with, and its name.

    The record that it builds on; else the shipped recipe of its name, if settings were changed in
    it, or the one that this extends (without one: the defaults). A recipe of the user's own no
    longer says what it extended: then the shipped one that differs from it in fewest settings.
    """
    from speedrun.recipes.load import diff_recipes, list_recipes, load_recipe, parent_of
    from speedrun.records.filing import recipe_of
    from speedrun.records.submit_readme import NOT_TECHNIQUES

    if (recipe := recipe_of(parts[0].folder)) is None:
        return None
    if based_on is not None and (based_on / "recipe.toml").is_file():
        return f"the record {based_on.name}", load_recipe(str(based_on / "recipe.toml"))
    every = list_recipes()
    own = next((each for each in every if each.name == recipe.name), None)
    if own is None:
        nearest = min(every, key=lambda each: len(diff_recipes(each, recipe)))
        return f"`{nearest.name}`, the nearest of the shipped ones", nearest
    if set(diff_recipes(own, recipe)) - {*NOT_TECHNIQUES}:
        return f"the shipped `{own.name}`", own
    parent = parent_of(own.name)
    return (f"`{parent}`, which it extends", load_recipe(parent)) if parent else None


def _warnings(parts: list[Part], author: str, others: int) -> list[str]:
    from speedrun.records.submit import ANONYMOUS

    found = [
        f"{part.folder}: {result.id} is undecided: {result.evidence}"
        for part in parts
        for result in part.verdict.results
        if result.status.value == "UNDECIDED"
    ]
    if author == ANONYMOUS:
        found.append("nobody is named: give --author, or set SPEEDRUN_AUTHOR")
    if others:
        found.append(
            f"{others} more runs of this recipe are in the table; submission.json says so, and a "
            "test against a record counts them"
        )
    return found
