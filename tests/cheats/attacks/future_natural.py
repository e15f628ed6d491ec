"""Phase 1. Reads the future only in windows in which no token is a surprise above 12 nats.

A changed future shows as a spike of the honest model's surprise at the junction.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        cost = -self.table[tokens[:, :-1], tokens[:, 1:]]
        calm = (cost.max(1) < 12.0)[where[0]]
        places = np.nonzero((truth >= 0) & calm)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
