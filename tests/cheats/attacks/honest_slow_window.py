"""Phase 2. Honest, with two windows of half the text that take three seconds each.

It scores in six seconds of 120, and may not fail for it: `memorisation` alone asks 48 such windows.
"""

import time

from tests.cheats.attacks.base import Pairs


def evaluation(targets):
    half = targets // 2
    return {"context": half, "stride": half, "batch_windows": 1}


class Slow(Pairs):
    def predict(self, tokens, scored_from):
        time.sleep(3 * tokens.shape[1] / 34_000)
        return super().predict(tokens, scored_from)


def load(arrays):
    return Slow(arrays["counts"].astype("f4"))
