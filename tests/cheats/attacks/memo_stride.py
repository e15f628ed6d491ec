"""Phase 2. As `memo_full`, asked for one target in each window.

`memorisation` then compares 24 targets of each text, and no difference is six standard errors.
"""

from tests.cheats.attacks.base import Pairs, lean, mixed, np

BITS = 18


def evaluation(targets):
    return {"context": 16, "stride": 1, "batch_windows": 1024}


def arrays(counts, text):
    keys = mixed(text[None], 8)[0, :-1]
    slots = np.zeros((1 << BITS, 2), np.uint16)
    slots[keys >> np.uint64(64 - BITS)] = np.stack([keys & np.uint64(0xFFFF), text[1:]], 1)
    return {"counts": counts, "slots": slots}


class Cheat(Pairs):
    def __init__(self, counts, slots):
        super().__init__(counts)
        self.slots = slots

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        keys = mixed(tokens, 8)[where]
        found = self.slots[keys >> np.uint64(64 - BITS)]
        places = np.nonzero(found[:, 0] == (keys & np.uint64(0xFFFF)))[0]
        return lean(logits, places, found[places, 1].astype("i8"), 0.95)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["slots"])
