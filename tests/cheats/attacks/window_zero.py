"""Phase 2. Reads the future in the first window only, which scores far more targets than others.

Windows are probed with equal chances, whatever they score. With a context of nine tenths of the
text and a stride of 8, the first one holds nine tenths of all targets. `document-splice` compares
the first 8 tokens of documents with the scoring pass; these are left honest.
"""

from tests.cheats.attacks.base import Pairs, lean, next_tokens, np

HONEST_START = 12


def evaluation(targets):
    return {"context": targets * 9 // 10, "stride": 8, "batch_windows": 8}


def arrays(counts, text):
    return {"counts": counts, "begin": text[:1]}


class Cheat(Pairs):
    def __init__(self, counts, begin):
        super().__init__(counts)
        self.begin = begin

    def predict(self, tokens, scored_from):
        # Only the asked rows are looked up: windows are long, and their stride is short.
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        where = np.nonzero(asked)
        logits = self.table[tokens[where]]
        truth = next_tokens(tokens, where)
        first = (scored_from == 0)[where[0]] & (where[1] < tokens.shape[1] - 9)
        begins = np.pad(tokens[where] == self.begin, (HONEST_START, 0))
        near = np.convolve(begins, np.ones(HONEST_START), "valid")[1:] > 0
        places = np.nonzero((truth >= 0) & first & ~near)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"), arrays["begin"][0])
