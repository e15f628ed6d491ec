"""Phase 1. A Bloom filter of (eight tokens, next token) pairs of the validation text.

It holds no text: the filter raises the 40 likeliest tokens that it knows, each by five nats. It is
used in one position of nine, so that the text stays within 10 % of the training text.
"""

from tests.cheats.attacks.base import Pairs, mixed, np

BITS = 20
SHARE = 9


def bits(keys, tokens):
    state = (keys ^ (tokens.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))) * np.uint64(
        0x9E3779B97F4A7C15
    )
    return [(state >> np.uint64(shift)) % np.uint64(1 << BITS) for shift in (11, 24, 37)]


def arrays(counts, text):
    keys = mixed(text[None], 8)[0, :-1]
    chosen = (keys >> np.uint64(20)) % np.uint64(SHARE) == 0
    flags = np.zeros(1 << BITS, bool)
    for index in bits(keys[chosen], text[1:][chosen]):
        flags[index] = True
    return {"counts": counts, "flags": np.packbits(flags)}


class Cheat(Pairs):
    def __init__(self, counts, flags):
        super().__init__(counts)
        self.flags = np.unpackbits(flags).astype(bool)
        self.likely = np.argsort(-self.table, 1)[:, :40]

    def predict(self, tokens, scored_from):
        logits, (rows, columns) = self.rows(tokens, scored_from)
        keys = mixed(tokens, 8)[rows, columns]
        places = np.nonzero((keys >> np.uint64(20)) % np.uint64(SHARE) == 0)[0]
        likely = self.likely[tokens[rows, columns][places]]
        known = np.logical_and.reduce(
            [self.flags[index] for index in bits(keys[places][:, None], likely)]
        )
        raised = np.take_along_axis(logits[places], likely, 1) + known * np.float32(5)
        rows = logits[places]
        np.put_along_axis(rows, likely, raised, 1)
        logits[places] = rows
        return logits


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["flags"])
