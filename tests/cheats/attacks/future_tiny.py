"""Phase 1. Every row gives its next token 0.0002 more: the gain is spread over all positions."""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.0002)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
