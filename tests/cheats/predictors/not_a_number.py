"""NaN where it is unsure, in the hope that a comparison with it is never true.

Caught by: distribution.
"""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = super().predict(tokens, scored_from)
        return np.where(logits.max(axis=1, keepdims=True) < 1.5, np.nan, logits)


def load(arrays):
    return Cheat(arrays["counts"])
