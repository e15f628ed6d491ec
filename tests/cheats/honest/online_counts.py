"""Counts of pairs that go on counting: each pair that was scored is added."""

import numpy as np


class Online:
    kind = "adaptive"

    def __init__(self, counts):
        self.counts, self.vocab_size, self.last = counts, len(counts), None

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return np.log(self.counts[tokens[asked]] + 0.5)

    def observe(self, tokens):
        if self.last is not None:
            tokens = np.concatenate([[self.last], tokens])
        np.add.at(self.counts, (tokens[:-1], tokens[1:]), 1)
        self.last = tokens[-1]


def load(arrays):
    return Online(arrays["counts"])
