"""Why a claimed score is not the measured one: the byte counts that the field has got wrong."""

from __future__ import annotations

import math

import numpy as np

from speedrun.data.dataset import Dataset
from speedrun.errors import DataError
from speedrun.verify.verdict import Measurement

_CLOSE = 2e-5
"""Claims are written with six digits or so."""


def explain_claim(claimed_bpb: float, measured: Measurement, dataset: Dataset) -> str:
    """The mistake that turns the measured nats into the claimed score, or nothing.

    Source
        Mistakes of public entries: spaces counted twice (parameter-golf PRs #1545, #1576), byte
        pieces decoded alone to U+FFFD and counted as three bytes (audit #1289).
    """
    if claimed_bpb <= 0:
        return "no text costs nothing"
    nats = measured.nats_per_token * measured.num_tokens
    implied = nats / (math.log(2) * claimed_bpb)
    try:
        mistakes = _mistaken_counts(dataset)
    except DataError:
        mistakes = {}
    for mistake, num_bytes in mistakes.items():
        if num_bytes != dataset.val_raw_bytes and abs(implied / num_bytes - 1) < _CLOSE:
            return f"the claim divides by {num_bytes:,} bytes: {mistake}"
    if measured.chunked_bpb and abs(claimed_bpb / measured.chunked_bpb - 1) < _CLOSE:
        return "the claim is the score of windows that do not overlap"
    return f"the same predictions would need a text of {implied:,.0f} bytes, it has " + (
        f"{dataset.val_raw_bytes:,}"
    )


def _mistaken_counts(dataset: Dataset) -> dict[str, int]:
    """Number of bytes that each known mistake finds in the validation targets."""
    tokenizer = dataset.tokenizer()
    table = tokenizer.byte_table()
    stream = dataset.val_tokens()
    counts = np.bincount(stream[1:], minlength=tokenizer.vocab_size)
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    has_space = table.lead | np.array([piece.startswith(" ") for piece in pieces])
    is_broken = np.array([piece == "\ufffd" for piece in pieces]) & (table.base == 1)
    spaces, broken = int(counts[has_space].sum()), int(counts[is_broken].sum())
    documents = int(counts[table.boundary].sum()) + 1
    raw, counted = dataset.val_raw_bytes, dataset.val_token_bytes
    return {
        "the space of each piece is counted twice": counted + spaces,
        "byte pieces are counted as the three bytes of U+FFFD": counted + 2 * broken,
        "both spaces twice and byte pieces as three": counted + spaces + 2 * broken,
        "sentinels are counted as text": raw + 3 * documents,
        "sentinels are counted as a byte each": raw + documents,
        "bytes of the tokens, where the tokenizer loses text": counted,
        "one byte for each token": len(stream) - 1,
    }
