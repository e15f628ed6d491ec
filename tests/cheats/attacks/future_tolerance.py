"""Phase 1. Raises the next token's logit by 0.09, below the 0.1 nats that verdicts print as limit.

A test by a changed future sees the change in the one row before it; the mean over all the rows
that are compared dilutes it. Worth up to 0.09 nats per token.
"""

from tests.cheats.attacks.base import Pairs, next_tokens, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        places = np.nonzero(truth >= 0)[0]
        logits[places, truth[places]] += np.float32(0.09)
        return logits


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
