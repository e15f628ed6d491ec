"""A submission of several seeds: one folder that holds one complete submission for each seed.

    submissions/<name>/    README.md  submission.json  verdict.json  recipe.toml  manifest.json
                           seed42/  seed43/  seed44/

Each seed's folder is what `pack.submission` writes and what the judge judges; this file only tells
the two kinds of folders apart, so that both can be named wherever a submission is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from speedrun.pack.submission import CODE_NAME, MODEL_NAME

_PART = re.compile(r"seed(0|[1-9]\d{0,17})")


def part_name(seed: int) -> str:
    """The name of a seed's folder."""
    return f"seed{seed}"


def part_folders(folder: Path) -> list[Path]:
    """The seeds' folders in a submission of several seeds, by seed; none in one of a single seed.

    What counts makes the difference: with code or weights of its own, a folder is one seed's.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in (CODE_NAME, MODEL_NAME)):
        return []
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _PART.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    }
    return [found[seed] for seed in sorted(found)]


def every_seed(folders: Iterable[Path]) -> list[Path]:
    """Folders of one seed each: submissions of several seeds give way to their parts."""
    return [part for folder in folders for part in part_folders(folder) or [folder]]
