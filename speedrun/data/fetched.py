"""The record of a download, beside its shards: where each file came from, and its hash."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from speedrun.errors import DataError
from speedrun.files import write_atomic

FETCHED = "fetched.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """One file as it was fetched."""

    remote: str
    """Path in its repository."""
    bytes: int
    sha256: str
    """Of the content, by us."""
    source_hash: str
    """What the source promised and the content was held against: `sha256:...`, `git:...` or ``."""
    revision: str
    """Commit of the repository."""


def read_fetched(folder: Path) -> dict[str, FetchedFile]:
    """Files by name; empty if there is no record.

    Raises
        DataError: the record is damaged.
    """
    path = folder / FETCHED
    try:
        values = json.loads(path.read_bytes())
        return {str(name): FetchedFile(**entry) for name, entry in values["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}; remove it and fetch again") from error


def write_fetched(folder: Path, repo: str, files: Mapping[str, FetchedFile]) -> None:
    """Write the record in one step."""
    entries = {name: dataclasses.asdict(entry) for name, entry in sorted(files.items())}
    content = {"repo": repo, "files": entries}
    write_atomic(folder / FETCHED, (json.dumps(content, indent=1) + "\n").encode())
