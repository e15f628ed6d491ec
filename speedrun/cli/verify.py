"""`speedrun verify`: judge a submission folder."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from speedrun.cli.forensics import audit_logs
from speedrun.cli.screen import say_aside


class Level(StrEnum):
    """How deep the judge looks."""

    static = "static"
    score = "score"
    probe = "probe"
    prove = "prove"


def verify(
    submissions: list[Path] | None = typer.Argument(
        None,
        metavar="SUBMISSION",
        help="Submission folders: one of all seeds, or one for each.",
    ),
    level: Level = typer.Option(
        Level.score,
        help="static reads files, score also runs the model, probe asks a fresh "
        "process again, prove has text coded and decoded.",
    ),
    track: str = typer.Option(
        "", metavar="NAME|FILE", help="Track name or .toml file. Default: its own."
    ),
    data: Path | None = typer.Option(
        None, metavar="FOLDER", help="Dataset folder. Default: the track's corpus."
    ),
    logs: Path | None = typer.Option(
        None, metavar="PATH", help="Audit published logs and claims here instead."
    ),
    out: Path | None = typer.Option(
        None, metavar="FILE", help="Also write verdict.json to this path."
    ),
    probe_seed: int | None = typer.Option(
        None, metavar="N", help="Repeat the probes of a verdict that has this seed."
    ),
    proof_tokens: str = typer.Option(
        "2000", metavar="N|all", help="Tokens that level prove codes and decodes."
    ),
    allow_unsandboxed: bool = typer.Option(
        False, "--allow-unsandboxed", help="Run code that is not yours without bubblewrap."
    ),
    retrain: bool = typer.Option(
        False, "--retrain", help="Also run its own training again and compare the score."
    ),
    spread: float | None = typer.Option(
        None, metavar="BPB", help="Standard deviation over seeds that --retrain allows for."
    ),
    against: str = typer.Option(
        "", metavar="RECORD|BPB,BPB", help="Test against a record: its folder, or its scores."
    ),
    runs: Path | None = typer.Option(
        None, metavar="FOLDER", help="Table of local runs. Default: where the submissions lie."
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print the verdict as JSON; of several, an array."
    ),
) -> None:
    """Judge a submission: every rule, and its score measured in a sandbox.

    Several are judged one by one and then together, as seeds of one recipe.
    With --logs nothing is run: the logs and submission.json of a record, or of
    all records below a folder, are checked against each other and the rules.
    Exit code 0 passed, 1 a rule is broken, 2 could not be decided: the worst.
    """
    if bool(submissions) == (logs is not None):
        what = "give SUBMISSION or --logs PATH, not both"
        raise typer.BadParameter(what if submissions else "Missing argument 'SUBMISSION'")
    if logs is not None:
        raise typer.Exit(audit_logs(logs, track=track, out=out, as_json=as_json))
    assert submissions
    from rich.console import Console

    from speedrun.cli import seeds
    from speedrun.data.corpus import open_corpus
    from speedrun.errors import DataError
    from speedrun.files import write_atomic
    from speedrun.pack.parts import every_seed, part_folders
    from speedrun.tracks.load import load_track
    from speedrun.verify.judge import verify_submission
    from speedrun.verify.verdict import print_verdict
    from speedrun.verify.whole import whole

    wholes = [folder for folder in submissions if part_folders(folder)]
    submissions = every_seed(submissions)
    chosen = load_track(track or claimed_track(submissions[0]))
    dataset = None
    if level is not Level.static or retrain:
        try:
            dataset = open_corpus(data or chosen.corpus, echo=say_aside)
        except DataError as error:
            if data is not None:
                raise
            say_aside(f"the corpus of track {chosen.name} is not here: {error}")
    if proof_tokens != "all" and not (proof_tokens.isdecimal() and int(proof_tokens) > 0):
        raise typer.BadParameter(f"{proof_tokens!r} is neither a number above 0 nor 'all'")
    standing = seeds.read_standing(against, chosen, dataset) if against else None
    verdicts = [
        verify_submission(
            submission,
            chosen,
            dataset,
            level=level.value,
            allow_unsandboxed=allow_unsandboxed,
            probe_seed=probe_seed,
            proof_tokens=None if proof_tokens == "all" else int(proof_tokens),
            progress=_show,
        )
        for submission in submissions
    ]
    if retrain:
        verdicts = seeds.retrain_each(
            submissions,
            verdicts,
            chosen,
            dataset,
            standing=standing,
            spread=spread,
            allow_unsandboxed=allow_unsandboxed,
            show=_show,
        )
    together = None
    if len(submissions) > 1 or against or wholes:
        together = seeds.judge_together(
            submissions,
            verdicts,
            chosen,
            against=bool(against),
            standing=standing,
            runs=runs,
            more=[whole(folder) for folder in wholes],
        )
    found: list[Any] = [verdict.to_dict() for verdict in verdicts]
    text = json.dumps([*found, together.to_dict()] if together else found[0], indent=2)
    if out is not None:
        write_atomic(out, f"{text}\n".encode())
    if as_json:
        print(text)
    else:
        for submission, verdict in zip(submissions, verdicts, strict=True):
            if together is not None:
                print(submission)
            print_verdict(verdict, Console())
        if together is not None:
            seeds.print_together(together, submissions, Console())
    raise typer.Exit((together or verdicts[0]).exit_code)


def claimed_track(submission: Path) -> str:
    """The shipped track that a submission names; it may not bring its own.

    Raises
        SubmissionError: there is no such folder, or it names no shipped track.
    """
    from speedrun import settings
    from speedrun.errors import SubmissionError
    from speedrun.tracks.load import FOLDER

    if not submission.is_dir():
        raise SubmissionError(f"{submission} is not a folder; expected a submission")
    try:
        name = json.loads((submission / "submission.json").read_bytes())["track"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SubmissionError(
            f"{submission / 'submission.json'}: names no track ({error}); give --track"
        ) from error
    if name not in settings.list_names(FOLDER):
        raise SubmissionError(f"{submission} is for track {name!r:.40}; give its file with --track")
    return str(name)


def _show(what: str, done: int, total: int) -> None:
    """A line that is written over on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{what}: {done:,} of {total:,} tokens", end=end, file=sys.stderr, flush=True)
