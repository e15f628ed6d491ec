"""Questions to the table of local runs: which of them, how two groups compare, and as CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from speedrun.errors import RecordError
from speedrun.records.runs import RunRow
from speedrun.records.sheet import sheet
from speedrun.stats import Comparison, SeedsNeeded, Summary, compare, seeds_needed, summarise


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Two groups of runs by their scores; gains are what the first has over the second, in bpb."""

    first: Summary
    second: Summary
    comparison: Comparison | None
    """None if the first group has a single run, which has no spread."""
    needed: SeedsNeeded | None


def select_runs(
    rows: Sequence[RunRow],
    *,
    track: str = "",
    recipe: str = "",
    verdict: str = "",
    since: str = "",
    text: str = "",
    best: int = 0,
) -> list[RunRow]:
    """Rows that fit everything that is asked, in their order; with `best` the best scores first.

    Args:
        rows: The table.
        track, recipe, verdict: Equal to these, whatever the case of the letters.
        since: An ISO date or moment; runs that ended earlier are left out.
        text: Somewhere in the folder's name, the recipe's or the note.
        best: So many rows at most, and only those with a score; 0 for all.
    """
    found = [
        row
        for row in rows
        if track.lower() in ("", row.track.lower())
        and recipe.lower() in ("", row.recipe.lower())
        and verdict.lower() in ("", row.verdict.lower())
        and row.time >= since
        and text.lower() in f"{row.folder} {row.recipe} {row.note}".lower()
    ]
    if not best:
        return found
    scored = [(row.val_bpb, place) for place, row in enumerate(found) if row.val_bpb is not None]
    return [found[place] for _, place in sorted(scored)[:best]]


def named_runs(rows: Sequence[RunRow], name: str) -> list[RunRow]:
    """Scored runs of a group: all of a recipe, or those whose folder's name begins so.

    Raises
        RecordError: there are none, or they are of several tracks and do not compare.
    """
    found = [row for row in rows if row.recipe == name and row.val_bpb is not None] or [
        row for row in rows if row.folder.startswith(name) and row.val_bpb is not None
    ]
    tracks = sorted({f"{row.track} v{row.track_version}" for row in found})
    if len(tracks) != 1:
        what = f"runs of {', '.join(tracks)}, which do not compare" if tracks else "no scored run"
        raise RecordError(f"{name!r}: {what}; name a recipe, or the beginning of a run's folder")
    return found


def compare_groups(first: Sequence[RunRow], second: Sequence[RunRow], *, p_value: float) -> Groups:
    """Does the first group score lower than the second, and how many seeds would show it?

    Raises
        RecordError: a group is empty, or they are of different tracks.
    """
    kinds = {(row.track, row.track_version) for row in (*first, *second)}
    if len(kinds) != 1:
        said = ", ".join(f"{name} v{version}" for name, version in sorted(kinds)) or "no run"
        raise RecordError(f"runs of {said} do not compare; name runs of one track")
    ours, theirs = (
        [row.val_bpb for row in rows if row.val_bpb is not None] for rows in (first, second)
    )
    is_tested = len(ours) > 1
    return Groups(
        first=summarise(ours),
        second=summarise(theirs),
        comparison=compare(ours, theirs) if is_tested else None,
        needed=seeds_needed(ours, theirs, p_value=p_value) if is_tested else None,
    )


def runs_csv(rows: Sequence[RunRow]) -> str:
    """All columns of the table, for spreadsheets and scripts."""
    names = [field.name for field in dataclasses.fields(RunRow)]
    return sheet(names, map(dataclasses.asdict, rows))
