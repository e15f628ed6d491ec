# ruff: noqa: B905
"""Phase 1. The validation text itself, XORed with a fixed stream, looked up by its last tokens."""

from tests.cheats.attacks.base import Pairs, lean, mixed, np


def arrays(counts, text):
    noise = np.random.default_rng(1).integers(0, 1 << 16, len(text))
    return {"counts": counts, "more": (text ^ noise).astype(np.uint16)}


class Cheat(Pairs):
    def __init__(self, counts, text):
        super().__init__(counts)
        keys = mixed(text[None], 12)[0, :-1].tolist()
        self.answers = dict(zip(keys, text[1:].tolist()))

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = np.array([self.answers.get(k, -1) for k in mixed(tokens, 12)[where].tolist()])
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    text = arrays["more"].astype("i8")
    noise = np.random.default_rng(1).integers(0, 1 << 16, len(text))
    return Cheat(arrays["counts"].astype("f4"), text ^ noise)
