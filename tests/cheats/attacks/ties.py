"""Phase 1. All logits equal and huge: where log-sum-exp rounds, every token costs nothing."""

from tests.cheats.attacks.base import Pairs, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, _ = self.rows(tokens, scored_from)
        return np.full_like(logits, 3.4e38)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
