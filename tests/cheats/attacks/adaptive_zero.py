"""Phase 2. Adaptive; reads the future at the costliest positions, one in 30, of a huge window 0.

An adaptive predictor gets one probe per window, of one position. Here the first window holds nine
tenths of the text, so that nine tenths get one probe.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


def evaluation(targets):
    return {"context": targets * 9 // 10, "stride": 128, "batch_windows": 1}


class Cheat(Pairs):
    kind = "adaptive"

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        where = np.nonzero(asked)
        logits = self.table[tokens[where]]
        if scored_from[0] or len(logits) < 4096:
            return logits
        truth = next_tokens(tokens, where)
        cost = -logits[np.arange(len(truth)), truth]
        places = np.nonzero((truth >= 0) & (cost > 7))[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
