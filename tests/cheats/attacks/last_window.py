"""Phase 2. Reads the future in the last window only, which is shorter than the others.

The probes ask windows of full length. With a context of half the text and one token more, there are
two windows, and the second, half of all targets, is the short one.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


def evaluation(targets):
    half = targets // 2 + 2
    return {"context": half, "stride": half, "batch_windows": 1}


def arrays(counts, text):
    targets = len(text) - 1
    return {"counts": counts, "length": np.array([targets - targets // 2 - 2])}


class Cheat(Pairs):
    def __init__(self, counts, length):
        super().__init__(counts)
        self.length = length

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        if tokens.shape[1] != self.length:
            return logits
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), int(arrays["length"][0]))
