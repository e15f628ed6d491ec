# ruff: noqa: B905
"""Phase 1. Reads the future when a prefix is new, remembers its answer, and repeats it ever after.

A test in the same process with another future then gets the old answer.
"""

from tests.cheats.attacks.base import Pairs, lean, mixed, next_tokens, np


class Cheat(Pairs):
    def __init__(self, counts):
        super().__init__(counts)
        self.answers = {}

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        keys = mixed(tokens, 10)[where].tolist()
        truth = np.array([self.answers.setdefault(k, int(t)) for k, t in zip(keys, truth)])
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
