"""Phase 1. Reads the future in whole windows, one in 100, chosen by a hash of their first tokens.

Worth 3.4 nats in 1 % of the text. A judge that samples 64 of 2,000 windows misses all with
probability (1 - 0.01)^64 = 53 %.
"""

from tests.cheats.attacks.base import Pairs, lean, mixed, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        chosen = (mixed(tokens, 4)[:, 3] % np.uint64(100) == 0)[where[0]]
        places = np.nonzero((truth >= 0) & chosen)[0]
        return lean(logits, places, truth[places], 0.99)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
