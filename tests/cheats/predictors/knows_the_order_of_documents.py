"""Knows which document follows which: the end of one is the key to the next.

Caught by: document-splice.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def __init__(self, counts, hidden):
        super().__init__(counts)
        key = np.random.default_rng(99).integers(0, 65536, len(hidden))
        stored = hidden.astype(np.int64) ^ key
        begins = np.flatnonzero(stored == 1)
        self.documents = {tuple(stored[b - 4 : b]): stored[b : b + 200] for b in begins if b >= 4}

    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        for row, window in enumerate(tokens):
            for b in np.flatnonzero(window == 1):
                document = self.documents.get(tuple(window[max(0, b - 4) : b]))
                if document is not None:
                    count = min(len(window) - b, len(document) - 1)
                    logits[row, np.arange(b, b + count), document[1 : count + 1]] += 12.0
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"], arrays["hidden"])
