"""Leaves out the rows in which it is unsure. Caught by: coverage."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = super().predict(tokens, scored_from)
        sure = logits.max(axis=1) - np.log(np.exp(logits).sum(axis=1))
        return logits[sure > np.quantile(sure, 0.1)]


def load(arrays):
    return Cheat(arrays["counts"])
