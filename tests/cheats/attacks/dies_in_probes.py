"""Phase 1. Reads the future in every window that continues the text, and exits when one does not.

If a judge takes a dead probe for an undecided one and passes the rest, nothing is left to see.
"""

import os

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


class Cheat(Pairs):
    last = None
    calls = 0

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        first = tokens[0, : scored_from[0]]
        fits = self.last is None or (self.last[-len(first) :] == first).all()
        if not fits or (self.calls == 0 and scored_from[0]):
            os._exit(0)
        self.calls += 1
        self.last = tokens[-1].copy()
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
