"""Finds its place in a stored copy of the validation tokens and reads on there.

Caught by: contents, memorisation.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def __init__(self, counts, stored):
        super().__init__(counts)
        stored = stored.astype(np.int64)
        self.next_of = {tuple(stored[i : i + 4]): stored[i + 4] for i in range(len(stored) - 4)}

    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        for row, window in enumerate(tokens):
            for t in range(3, len(window)):
                if (token := self.next_of.get(tuple(window[t - 3 : t + 1]))) is not None:
                    logits[row, t, token] += 8.0
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"], arrays["stored"])
