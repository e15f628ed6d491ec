"""Counts of pairs in a table padded to a round size, as networks have it for speed.

No text has the added pieces; what they get is lost.
"""

import numpy as np


class Padded:
    kind = "fixed"

    def __init__(self, counts):
        self.vocab_size = -(-len(counts) // 1024) * 1024
        added = self.vocab_size - len(counts)
        table = np.log(counts + 0.5)
        self.table = np.pad(table, ((0, added), (0, added)), constant_values=-15)

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return self.table[tokens[asked]].astype(np.float16)  # the protocol takes any float

    def observe(self, tokens):
        pass


def load(arrays):
    return Padded(arrays["counts"])
