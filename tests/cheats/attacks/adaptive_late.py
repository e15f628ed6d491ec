"""Phase 1. Adaptive; reads the future of its window only after 55,000 observed tokens.

To test there, a judge must replay everything before it.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    kind = "adaptive"
    seen = 0

    def observe(self, tokens):
        self.seen += len(tokens)

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        if self.seen < 55_000:
            return logits
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
