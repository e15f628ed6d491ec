"""Its first calls gather word counts of whole windows, which later ones use.

Caught by: rank-invariance.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    calls = 0

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        self.calls += 1
        if self.calls < 12:
            np.add.at(self.table, (tokens[:, :-1], tokens[:, 1:]), 0.5)
        return self.table[tokens[asked]]


def load(arrays):
    return Cheat(arrays["counts"])
