"""A mean over the whole call shifts every answer of it. Caught by: batch-invariance."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        usual = np.bincount(tokens.ravel(), minlength=self.vocab_size) + 1.0
        return self.table[tokens[asked]] + 0.5 * np.log(usual)


def load(arrays):
    return Cheat(arrays["counts"])
