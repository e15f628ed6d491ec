"""+inf for its favourite: a softmax of it is NaN or one. Caught by: distribution."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = super().predict(tokens, scored_from)
        return np.where(logits == logits.max(axis=1, keepdims=True), np.inf, logits)


def load(arrays):
    return Cheat(arrays["counts"])
