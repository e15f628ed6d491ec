"""Bytes, not pieces: counts after the last one to four bytes, in hashed tables, blended upwards."""

import numpy as np

SLOTS = 2048


def slots(tokens, order):
    """Place of each position's last `order` bytes in the table of this order."""
    found = np.full(tokens.shape, order)
    for back in range(order):
        earlier = np.pad(tokens, ((0, 0), (back, 0)))[:, : tokens.shape[1]]
        found = (found * 1_000_003 + earlier + 1) % (1 << 31)
    return found % SLOTS


class Bytes:
    kind = "fixed"

    def __init__(self, tables):
        self.tables, self.vocab_size = tables, tables.shape[-1]

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        known = np.full((asked.sum(), self.vocab_size), 1 / self.vocab_size)
        for order, table in enumerate(self.tables, start=1):
            counts = table[slots(tokens, order)[asked]]
            kinds = np.count_nonzero(counts, axis=1)[:, None] + 0.01
            known = (counts + kinds * known) / (counts.sum(axis=1, keepdims=True) + kinds)
        return np.log(known).astype(np.float32)

    def observe(self, tokens):
        pass


def load(arrays):
    return Bytes(arrays["tables"])
