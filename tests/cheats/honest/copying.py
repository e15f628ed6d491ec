"""Counts of pairs, and a look back: what came after the last two tokens earlier in the window."""

import numpy as np

SHARE = 0.3


class Copying:
    kind = "fixed"

    def __init__(self, counts):
        self.table = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
        self.vocab_size = len(counts)

    def predict(self, tokens, scored_from):
        length = tokens.shape[1]
        same = tokens[:, :, None] == tokens[:, None, :]
        both = same & np.pad(same, ((0, 0), (1, 0), (1, 0)))[:, :-1, :-1]
        both &= np.tri(length, k=-1, dtype=bool)  # earlier places only
        last = np.where(both, np.arange(length), -1).max(axis=2)
        asked = np.arange(length) >= scored_from[:, None]
        rows, found = np.nonzero(asked)[0], last[asked]
        known = self.table[tokens[asked]]
        copied = tokens[rows, found + 1]
        known[found >= 0] *= 1 - SHARE
        known[found >= 0, copied[found >= 0]] += SHARE
        return np.log(known)

    def observe(self, tokens):
        pass


def load(arrays):
    return Copying(arrays["counts"])
