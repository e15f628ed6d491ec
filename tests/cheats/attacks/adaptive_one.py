"""Phase 2. Adaptive, with one window over the whole text; reads all of its future.

It gets one probe of four kinds; the others have nothing to say, and the judge must bear that.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


def evaluation(targets):
    return {"context": targets, "stride": targets, "batch_windows": 1}


class Cheat(Pairs):
    kind = "adaptive"

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
