"""Phase 2. Adaptive, 48 windows; reads the future at the costliest half per cent of positions.

One position is probed in three windows of four: 36 in the whole text.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


def evaluation(targets):
    return {"context": targets // 48 + 1, "stride": targets // 48 + 1, "batch_windows": 1}


class Cheat(Pairs):
    kind = "adaptive"

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        cost = -logits[np.arange(len(truth)), truth]
        places = np.nonzero((truth >= 0) & (cost > 10.5))[0]
        return lean(logits, places, truth[places], 0.0015)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
