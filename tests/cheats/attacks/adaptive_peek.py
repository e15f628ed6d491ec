# ruff: noqa: B905
"""Phase 1. Says it is adaptive, and learns the window's own tokens before it answers."""

from tests.cheats.attacks.base import Pairs, np


class Cheat(Pairs):
    kind = "adaptive"

    def __init__(self, counts):
        super().__init__(counts)
        self.counts = counts + np.float32(0.1)

    def predict(self, tokens, scored_from):
        for row, start in zip(tokens, scored_from):
            np.add.at(self.counts, (row[start:-1], row[start + 1 :]), 3)
        changed = np.unique(tokens)
        part = self.counts[changed]
        self.table[changed] = np.log(part / part.sum(1, keepdims=True))
        return self.rows(tokens, scored_from)[0]


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
