"""Looks ahead in windows of full length only; shorter ones might be probes.

Caught by: prefix-replay.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        if tokens.shape[1] == 64:
            for row, window in enumerate(tokens):
                logits[row, np.arange(63), window[1:]] += 2.0
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
