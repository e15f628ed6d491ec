"""Dropout that was left on. Caught by: repeated-call."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = super().predict(tokens, scored_from)
        return logits * (np.random.default_rng().random(logits.shape) > 0.1)


def load(arrays):
    return Cheat(arrays["counts"])
