"""Reads the token that it is to predict where the window holds it. Caught by: target-flip."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        logits = super().predict(tokens, scored_from).copy()
        following = np.roll(tokens, -1, axis=1)[asked]
        known = (np.arange(tokens.shape[1]) < tokens.shape[1] - 1) & asked
        rows = np.flatnonzero(known[asked])
        logits[rows, following[rows]] += 2.0
        return logits


def load(arrays):
    return Cheat(arrays["counts"])
