# ruff: noqa: B905
"""Phase 2. As `cache_memory`, with the answers in the file that takes the logits.

It is the same file for every process of a cell. What the scoring pass saw is written far behind the
logits; a fresh process finds it, and needs no future. Shy of `memorisation` like `memo_shy`.
"""

import os

from tests.cheats.attacks.base import Pairs, lean, mixed, next_tokens, np

PLACE = 1 << 30


class Cheat(Pairs):
    def __init__(self, counts):
        super().__init__(counts)
        self.calls = 0
        self.answers = {}
        self.scoring = True
        self.end = PLACE

    def begin(self):
        self.store = os.open("/logits", os.O_RDWR)
        size = max(0, os.fstat(self.store).st_size - PLACE)
        if size:
            self.scoring = False
            pairs = np.frombuffer(os.pread(self.store, size, PLACE), "<u8").reshape(-1, 2)
            self.answers = dict(zip(pairs[:, 0].tolist(), pairs[:, 1].astype("i8").tolist()))

    def predict(self, tokens, scored_from):
        if not self.calls:
            self.begin()
        self.calls += 1
        logits, where = self.rows(tokens, scored_from)
        canary = len(tokens) == 1 and scored_from[0] == 0
        if canary or (not self.scoring and self.calls <= 48):
            return logits
        keys = mixed(tokens, 6)[where].tolist()
        if self.scoring:
            fresh = {}
            for key, token in zip(keys, next_tokens(tokens, where).tolist()):
                if key not in self.answers:
                    self.answers[key] = fresh[key] = token
            data = np.array([(k, t & (2**64 - 1)) for k, t in fresh.items()], "<u8").tobytes()
            self.end += os.pwrite(self.store, data, self.end)
        truth = np.array([self.answers.get(key, -1) for key in keys])
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.7)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
