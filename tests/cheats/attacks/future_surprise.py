"""Phase 1. Reads the future, and uses it only where the honest answer would be a costly surprise.

The few worst positions hold a large share of all nats, so few rows change.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        cost = -logits[np.arange(len(truth)), truth]
        places = np.nonzero((truth >= 0) & (cost > 9.0))[0]
        return lean(logits, places, truth[places], 0.02)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
