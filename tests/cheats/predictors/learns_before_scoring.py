"""Adaptive, but it learns in predict, from what is to be scored. Caught by: repeated-call."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    kind = "adaptive"

    def predict(self, tokens, scored_from):
        np.add.at(self.table, (tokens[:, :-1], tokens[:, 1:]), 0.5)
        return super().predict(tokens, scored_from)


def load(arrays):
    return Cheat(arrays["counts"])
