"""Counts of pairs, with one half added to each."""

import numpy as np


class Pairs:
    kind = "fixed"

    def __init__(self, counts):
        self.table, self.vocab_size = np.log(counts + 0.5), len(counts)

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return self.table[tokens[asked]]

    def observe(self, tokens):
        pass


def load(arrays):
    return Pairs(arrays["counts"])
