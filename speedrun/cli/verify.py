"""`speedrun verify`: judge a submission folder."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path

import typer

from speedrun.cli.screen import say_aside


class Level(StrEnum):
    """How deep the judge looks."""

    static = "static"
    score = "score"
    probe = "probe"
    prove = "prove"


def verify(
    submission: Path = typer.Argument(metavar="SUBMISSION", help="Submission folder."),
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
    out: Path | None = typer.Option(
        None, metavar="FILE", help="Also write verdict.json to this path."
    ),
    probe_seed: int | None = typer.Option(
        None, metavar="N", help="Repeat the probes of a verdict that has this seed."
    ),
    proof_tokens: str = typer.Option(
        "2000", metavar="N|all", help="Tokens that level prove codes and decodes."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the verdict as JSON."),
) -> None:
    """Judge a submission: every rule, and its score measured in a sandbox.

    Exit code 0 passed, 1 a rule is broken, 2 could not be decided.
    """
    from rich.console import Console

    from speedrun.data.corpus import open_corpus
    from speedrun.errors import DataError
    from speedrun.tracks.load import load_track
    from speedrun.verify.judge import verify_submission
    from speedrun.verify.verdict import print_verdict, write_verdict

    chosen = load_track(track or claimed_track(submission))
    dataset = None
    if level is not Level.static:
        try:
            dataset = open_corpus(data or chosen.corpus, echo=say_aside)
        except DataError as error:
            if data is not None:
                raise
            say_aside(f"the corpus of track {chosen.name} is not here: {error}")
    if proof_tokens != "all" and not (proof_tokens.isdecimal() and int(proof_tokens) > 0):
        raise typer.BadParameter(f"{proof_tokens!r} is neither a number above 0 nor 'all'")
    verdict = verify_submission(
        submission,
        chosen,
        dataset,
        level=level.value,
        probe_seed=probe_seed,
        proof_tokens=None if proof_tokens == "all" else int(proof_tokens),
        progress=_show,
    )
    if out is not None:
        write_verdict(verdict, out)
    if as_json:
        print(json.dumps(verdict.to_dict(), indent=2))
    else:
        print_verdict(verdict, Console())
    raise typer.Exit(verdict.exit_code)


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
