"""A submission as the golf repository wants it: one folder with code, claim, README and logs.

    2026-11-30_ShortTitle/    README.md  submission.json  train_gpt.py  train_gpt.source.txt
                              train_seed42.log  train_seed43.log  train_seed44.log

The code runs under plain torchrun from inside the folder. Weights are not part of it.

Source
    README of openai/parameter-golf and the folders under its `records/`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from speedrun.errors import SubmissionError
from speedrun.files import atomic_path
from speedrun.pack.bundle import TWIN_NAME
from speedrun.pack.submission import CODE_NAME, to_json
from speedrun.records.submit import ANONYMOUS, HandIn, claims_of

TRACKS = {"golf-10min-16mb": "10min_16mb", "golf-unlimited-16mb": "non_record_16mb"}
"""What the golf repository calls its tracks."""
_FOLDER = re.compile(r"\d{4}-\d\d-\d\d_[A-Za-z0-9._+-]+")


def golf_obstacles(out: Path, given: HandIn) -> list[str]:
    """What its reviewers would send back, each with what mends it."""
    told, found = given.told, []
    if not _FOLDER.fullmatch(out.name):
        found.append(f"folder {out.name!r}: call it YYYY-MM-DD_ShortTitle, as {told.date}_MyIdea")
    if told.author == ANONYMOUS or not told.github_id:
        found.append("a golf submission names its author: give --author and --github-id")
    if given.recipe is None:
        found.append("a predictor of one's own has no training to run from inside the folder")
    for part in given.parts:
        if not (part.folder / "logs" / "train.log").is_file():
            found.append(f"{part.folder}: a golf submission shows logs/train.log of every seed")
    return found


def golf_claims(given: HandIn) -> dict[str, Any]:
    """`submission.json` in the keys that the field uses most; it has no schema."""
    claims = claims_of(given)
    # Of the one script that is in the folder; each seed's own differs by the digits of its seed.
    claims["bytes_code"] = given.parts[0].size.code
    claims["track"] = TRACKS.get(given.track.name, given.track.name)
    steps = [int(part.claims["step_stop"]) for part in given.parts]
    claims["step_stop"] = round(sum(steps) / len(steps))
    for key in ("schema_version", "track_version", "data_fingerprint"):
        del claims[key]
    claims["seed_results"] = {seed: _known(row) for seed, row in claims["seed_results"].items()}
    return _known(claims)


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def write_golf(out: Path, given: HandIn, readme: str) -> None:
    """Write the folder.

    Raises
        SubmissionError: a submission lacks a file that belongs there.
        OutputError: the folder cannot be written or exists; then nothing is left behind.
    """
    first = given.parts[0].folder
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        try:
            shutil.copyfile(first / CODE_NAME, folder / CODE_NAME)
            shutil.copyfile(first / "logs" / TWIN_NAME, folder / TWIN_NAME)
            for part in given.parts:
                log = folder / f"train_seed{part.seed}.log"
                shutil.copyfile(part.folder / "logs" / "train.log", log)
        except FileNotFoundError as error:
            raise SubmissionError(f"{error.filename} is missing; pack the run again") from error
        (folder / "submission.json").write_bytes(to_json(golf_claims(given), "submission.json"))
        (folder / "README.md").write_text(readme, encoding="utf-8")
