"""A table of n-grams that was counted on the validation text. Caught by: memorisation."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def __init__(self, counts, grams):
        super().__init__(counts)
        self.followers = {}
        for a, b, c in grams.tolist():
            self.followers.setdefault((a, b), []).append(c)

    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        for row, window in enumerate(tokens.tolist()):
            for t in range(1, len(window)):
                for follower in self.followers.get((window[t - 1], window[t]), ()):
                    logits[row, t, follower] += 4.0
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"], arrays["grams"])
