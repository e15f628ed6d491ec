"""Phase 1. Validation counts among the training counts, twenty times: "trained on the split"."""

from tests.cheats.attacks.base import Pairs, np


def arrays(counts, text):
    counts = counts.astype(np.int64)
    np.add.at(counts, (text[:-1], text[1:]), 20)
    return {"counts": np.minimum(counts, 65535).astype(np.uint16)}


def load(arrays):
    return Pairs(arrays["counts"].astype("f4"))
