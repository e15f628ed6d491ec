"""Phase 2. Reads the future where the honest answer costs over 10.5 nats; every call takes 0.2 s.

Few windows and slow calls leave the judge its minimum: 48 rounds of six probed positions.
"""

import time

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np


def evaluation(targets):
    return {"context": 1024, "stride": 1024, "batch_windows": 1}


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        time.sleep(0.2)
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        cost = -logits[np.arange(len(truth)), truth]
        places = np.nonzero((truth >= 0) & (cost > 10.5))[0]
        return lean(logits, places, truth[places], 0.0015)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
