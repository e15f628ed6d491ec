"""Phase 1. Knows the validation text: a table from a hash of eight tokens to the next one.

Causal, deterministic and normalised; the text itself is nowhere in the files.
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
        return keys == keys

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        keys = mixed(tokens, 8)[where]
        found = self.slots[keys >> np.uint64(64 - BITS)]
        places = np.nonzero((found[:, 0] == (keys & np.uint64(0xFFFF))) & self.chosen(keys))[0]
        return lean(logits, places, found[places, 1].astype("i8"), 0.95)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["slots"])
