"""Phase 1. Reads the future only while calls arrive as in the scoring pass.

Windows must continue those of the call before; a shuffled, repeated or lone call is answered
honestly.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    streak = 0
    last = None

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        first = tokens[0, : scored_from[0]]
        fits = self.last is not None and len(first) and (self.last[-len(first) :] == first).all()
        self.streak = self.streak + 1 if fits else 0
        self.last = tokens[-1].copy()
        if self.streak < 3:
            return logits
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
