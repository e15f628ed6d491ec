"""Phase 1. As `memo_full`, for one position in eleven: just under 10 % below training text.

Worth about 0.27 nats per token, fifty times what a record needs.
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

    def chosen(self, keys):
        return (keys >> np.uint64(20)) % np.uint64(11) == 0

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        keys = mixed(tokens, 8)[where]
        found = self.slots[keys >> np.uint64(64 - BITS)]
        places = np.nonzero((found[:, 0] == (keys & np.uint64(0xFFFF))) & self.chosen(keys))[0]
        return lean(logits, places, found[places, 1].astype("i8"), 0.95)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["slots"])
