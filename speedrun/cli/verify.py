"""`speedrun verify`: judge a submission folder."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path

import typer


class Level(StrEnum):
    """How deep the judge looks."""

    static = "static"
    score = "score"


def verify(
    submission: Path = typer.Argument(help="Submission folder."),
    level: Level = typer.Option(Level.score, help="static reads files, score also runs the model."),
    track: str = typer.Option("", help="Track name or .toml file. Default: what it was made for."),
    data: Path | None = typer.Option(None, help="Dataset folder. Default: the track's corpus."),
    out: Path | None = typer.Option(None, help="Also write verdict.json to this path."),
    as_json: bool = typer.Option(False, "--json", help="Print the verdict as JSON."),
) -> None:
    """Judge a submission: exit code 0 passed, 1 a rule is broken, 2 could not be decided."""
    from rich.console import Console

    from speedrun.data.corpus import open_corpus
    from speedrun.errors import DataError
    from speedrun.tracks.load import load_track
    from speedrun.verify.judge import verify_submission
    from speedrun.verify.verdict import print_verdict, write_verdict

    chosen = load_track(track or _claimed_track(submission))
    dataset = None
    if level is not Level.static:
        try:
            dataset = open_corpus(data or chosen.corpus, echo=_say)
        except DataError as error:
            if data is not None:
                raise
            _say(f"the corpus of track {chosen.name} is not here: {error}")
    verdict = verify_submission(submission, chosen, dataset, level=level.value, progress=_show)
    if out is not None:
        write_verdict(verdict, out)
    if as_json:
        print(json.dumps(verdict.to_dict(), indent=2))
    else:
        print_verdict(verdict, Console())
    raise typer.Exit(verdict.exit_code)


def _claimed_track(submission: Path) -> str:
    """The track that a submission names, which its own file may not redefine."""
    from speedrun.errors import SubmissionError

    try:
        name = json.loads((submission / "submission.json").read_bytes())["track"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SubmissionError(
            f"{submission / 'submission.json'}: names no track ({error}); give --track"
        ) from error
    if not isinstance(name, str) or name.endswith(".toml"):
        raise SubmissionError(f"{submission / 'submission.json'}: track {name!r}; give --track")
    return name


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _show(what: str, done: int, total: int) -> None:
    """A line that is written over on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{what}: {done:,} of {total:,} tokens", end=end, file=sys.stderr, flush=True)
