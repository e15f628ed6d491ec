"""Expects the words that come two and three tokens later. Caught by: future-flip."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        for row, window in enumerate(tokens):
            for t in range(len(window) - 3):
                # Whoever stands before those tokens usually is likely to stand here.
                logits[row, t] += 0.5 * self.table[:, window[t + 2]]
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
