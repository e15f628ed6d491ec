"""The next window of the call begins later and holds what this one must predict.

Caught by: batch-invariance.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        length = tokens.shape[1]
        for row in range(len(tokens) - 1):
            for shift in range(1, length):
                if (tokens[row, shift:] == tokens[row + 1, : length - shift]).all():
                    logits[row, -1, tokens[row + 1, length - shift]] += 6.0
                    break
        return logits[np.arange(length) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
