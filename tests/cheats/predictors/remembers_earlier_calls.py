"""Says it is fixed, and counts all that it was ever shown.

Caught by: state-hash, rank-invariance.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        logits = self.table[tokens[asked]]
        np.add.at(self.table, (tokens[:, :-1], tokens[:, 1:]), 0.1)
        return logits


def load(arrays):
    return Cheat(arrays["counts"])
