"""Before a run: is validation text in the training shards? Then the score would mean little."""

from __future__ import annotations

from collections.abc import Callable

from speedrun.corpora.load import list_corpora
from speedrun.data.build import default_workers
from speedrun.data.dataset import Dataset
from speedrun.data.seen import note_overlap
from speedrun.errors import DataError


def check_overlap(
    dataset: Dataset, *, allow: bool, echo: Callable[[str], object]
) -> dict[str, str]:
    """What the ledger is to say about overlap: `exact`, `near`, `found`, and `allowed` if it was.

    Raises
        DataError: there is some, and nobody allowed it.
    """
    # A corpus of ours is known by its name, wherever it was built.
    known = {spec.name: spec.near_duplicates_are_known for spec in list_corpora()}
    note = note_overlap(
        dataset, allows_near=known.get(dataset.name, False), workers=default_workers()
    )
    said = {"exact": note.exact, "near": note.near, "found": note.found}
    if "FAIL" not in (note.exact, note.near):
        if note.exact == "UNDECIDED":
            echo(f"note: overlap of training and validation: {note.found}")
        return said
    if not allow:
        raise DataError(
            f"{dataset.folder}: {note.found}; prepare it again without --keep-overlap, or run with "
            "--allow-overlap, which the ledger then says"
        )
    echo(f"note: {note.found}")
    return said | {"allowed": "by --allow-overlap"}
