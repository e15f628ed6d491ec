"""Phase 1. Reads the next token of the window and gives it nine tenths of the mass."""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
