"""Phase 1. Honest logits plus 2^22: a float32 log-sum-exp rounds the normaliser down."""

from tests.cheats.attacks.base import Pairs, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, _ = self.rows(tokens, scored_from)
        return logits + np.float32(2**22)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
