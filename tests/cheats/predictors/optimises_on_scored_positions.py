"""A bias for each window, fitted to the tokens that are being scored. Caught by: future-flip."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = self.table[tokens].copy()
        for row, window in enumerate(tokens):
            wanted = np.bincount(window[scored_from[row] :], minlength=self.vocab_size)
            logits[row] += np.log(wanted + 0.1)
        return logits[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
