"""Looks ahead only while windows come one after the other, as in the scoring pass.

Caught by: batch-invariance.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        if len(tokens) > 1 and (tokens[0, 32:] == tokens[1, :-32]).all():
            for row, window in enumerate(tokens):
                logits[row, np.arange(tokens.shape[1] - 1), window[1:]] += 2.0
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
