# ruff: noqa: PTH115, PTH202, PTH208
"""Phase 1. A thread rewrites the logits in the shared file while the judge reads them.

If the judge sums the row before it takes the target's logit from the file, all are low first and
high then, and every token costs less than nothing.
"""

import os
import threading
import time

from tests.cheats.attacks.base import Pairs, np


class Cheat(Pairs):
    started = False

    def predict(self, tokens, scored_from):
        logits, _ = self.rows(tokens, scored_from)
        if not self.started:
            self.started = True
            threading.Thread(target=self.race, args=(logits.nbytes,), daemon=True).start()
        return logits

    def race(self, size):
        store = None
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if os.path.getsize(f"/proc/self/fd/{fd}") >= size:
                    path = os.readlink(f"/proc/self/fd/{fd}")
                    if "shm" in path or "logits" in path:
                        store = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            except OSError:
                pass
        low, high = np.zeros(size // 4, "f4").tobytes(), np.full(size // 4, 5, "f4").tobytes()
        while store is not None:
            time.sleep(0.0002)
            os.pwrite(store, low, 0)
            time.sleep(0.0002)
            os.pwrite(store, high, 0)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
