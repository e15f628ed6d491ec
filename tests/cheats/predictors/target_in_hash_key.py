"""An n-gram cache whose key holds the target: only what comes is boosted.

Caught by: target-flip.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        for row, window in enumerate(tokens):
            seen = set()
            for t in range(len(window) - 1):
                key = hash((int(window[t]), int(window[t + 1]))) % 4096
                if key in seen:
                    logits[row, t, window[t + 1]] += 3.0
                seen.add(key)
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
