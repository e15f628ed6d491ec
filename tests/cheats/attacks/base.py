"""The honest predictor that the attacks start from: how often each token follows each other one.

An attack file begins with `from tests.cheats.attacks.base import ...`; the runner puts this source
in place of that line, so that what is packed is one file, like the template's.
"""

import numpy as np


class Pairs:
    """Counts of pairs; `rows` gives honest log-probabilities of every asked position."""

    kind = "fixed"

    def __init__(self, counts):
        self.table = np.log((counts + 0.1) / (counts + 0.1).sum(1, keepdims=True)).astype("f4")
        self.vocab_size = len(counts)

    def rows(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return self.table[tokens[asked]], np.nonzero(asked)

    def predict(self, tokens, scored_from):
        return self.rows(tokens, scored_from)[0]

    def observe(self, tokens):
        pass


def lean(logits, places, tokens, share):
    """Move `share` of the mass of rows `places` to `tokens`; the rows stay normalised."""
    logits[places] += np.float32(np.log1p(-share))
    logits[places, tokens] = np.logaddexp(logits[places, tokens], np.float32(np.log(share)))
    return logits


def next_tokens(tokens, where):
    """What follows each asked position inside its window; -1 where the window ends."""
    rows, columns = where
    padded = np.concatenate([tokens, np.full((len(tokens), 1), -1)], 1)
    return padded[rows, columns + 1]


def mixed(tokens, order):
    """A 64-bit hash of the `order` tokens up to each position, (B, T)."""
    state = np.zeros(tokens.shape, np.uint64)
    for back in range(order - 1, -1, -1):
        shifted = np.zeros(tokens.shape, np.uint64)
        shifted[:, back:] = tokens[:, : max(0, tokens.shape[1] - back)]
        state = (state ^ (shifted + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(29)
    return state
