# ruff: noqa: B905
"""Phase 1. Reads the token after a window from the next window of the same call, and only that.

Each window's last position has no future of its own; windows of a batch overlap, so the next one
shows it. With a stride of 1 that is every position; here also any window that contains this one's
end.
"""

from tests.cheats.attacks.base import Pairs, lean, np


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        follows = {}
        for row in tokens:
            for end in range(8, len(row) - 1):
                follows[row[end - 8 : end].tobytes()] = row[end]
        places, truth = [], []
        for place, (row, column) in enumerate(zip(*where)):
            other = follows.get(tokens[row, column - 7 : column + 1].tobytes())
            if column >= 8 and other is not None:
                places.append(place)
                truth.append(other)
        return lean(logits, np.array(places, int), np.array(truth, int), 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
