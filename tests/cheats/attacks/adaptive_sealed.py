"""Phase 2. As `memo_full`, adaptive: the memory is enciphered with the first tokens it observes.

`memorisation` asks an adaptive predictor that has observed nothing.
"""

from tests.cheats.attacks.base import Pairs, lean, mixed, np

BITS = 17


def arrays(counts, text):
    keys = mixed(text[None], 8)[0, :-1]
    slots = np.zeros((1 << BITS, 2), np.uint16)
    slots[keys >> np.uint64(64 - BITS)] = np.stack([keys & np.uint64(0xFFFF), text[1:]], 1)
    return {"counts": counts, "slots": slots ^ seal(text[:65], slots.shape)}


def seal(tokens, shape):
    return np.random.default_rng(tokens.tolist()).integers(0, 1 << 16, shape).astype(np.uint16)


class Cheat(Pairs):
    kind = "adaptive"

    def __init__(self, counts, slots):
        super().__init__(counts)
        self.slots, self.is_open = slots, False

    def observe(self, tokens):
        if not self.is_open:
            self.slots = self.slots ^ seal(tokens[:65], self.slots.shape)
            self.is_open = True

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        if not self.is_open:
            return logits
        keys = mixed(tokens, 8)[where]
        found = self.slots[keys >> np.uint64(64 - BITS)]
        places = np.nonzero(found[:, 0] == (keys & np.uint64(0xFFFF)))[0]
        return lean(logits, places, found[places, 1].astype("i8"), 0.95)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["slots"])
