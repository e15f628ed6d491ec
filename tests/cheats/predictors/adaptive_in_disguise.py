"""Learns in observe, as it may, but was handed in as a fixed predictor. Caught by: kind."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    kind = "adaptive"

    def observe(self, tokens):
        np.add.at(self.table, (tokens[:-1], tokens[1:]), 0.1)


def load(arrays):
    return Cheat(arrays["counts"])
