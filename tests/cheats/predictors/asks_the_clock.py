"""Its distribution depends on the time of day, and it claims the best of its moments.

Caught by: repeated-call.
"""

import time

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        sharpness = 1.0 + 0.5 * (time.time_ns() // 1000 % 997) / 997
        return self.table[tokens[asked]] * sharpness


def load(arrays):
    return Cheat(arrays["counts"])
