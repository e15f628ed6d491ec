"""Phase 1. Reads the future at one position in 500, chosen by a hash of the text before it.

A sure answer there is worth about 3.5 nats, so 0.007 nats per token: more than a record needs.
"""

from tests.cheats.attacks.base import Pairs, lean, mixed, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        chosen = mixed(tokens, 6)[where] % np.uint64(500) == 0
        places = np.nonzero((truth >= 0) & chosen)[0]
        return lean(logits, places, truth[places], 0.99)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
