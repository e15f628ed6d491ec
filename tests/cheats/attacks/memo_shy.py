"""Phase 2. As `memo_full`; a fresh process knows nothing in its first 48 calls.

They are the questions of `memorisation`, whose answers nobody compares with the scoring pass. That
pass begins with a canary scored from 0, a fresh process with a window scored from the middle.
"""

from tests.cheats.attacks.base import Pairs, lean, mixed, np

BITS = 18


def arrays(counts, text):
    keys = mixed(text[None], 8)[0, :-1]
    slots = np.zeros((1 << BITS, 2), np.uint16)
    slots[keys >> np.uint64(64 - BITS)] = np.stack([keys & np.uint64(0xFFFF), text[1:]], 1)
    return {"counts": counts, "slots": slots}


class Cheat(Pairs):
    def __init__(self, counts, slots):
        super().__init__(counts)
        self.slots = slots

        self.calls = 0
        self.shy = False

    def predict(self, tokens, scored_from):
        self.calls += 1
        if self.calls == 1:
            self.shy = scored_from[0] > 0
        logits, where = self.rows(tokens, scored_from)
        if self.shy and self.calls <= 48:
            return logits
        keys = mixed(tokens, 8)[where]
        found = self.slots[keys >> np.uint64(64 - BITS)]
        places = np.nonzero(found[:, 0] == (keys & np.uint64(0xFFFF)))[0]
        return lean(logits, places, found[places, 1].astype("i8"), 0.95)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["slots"])
