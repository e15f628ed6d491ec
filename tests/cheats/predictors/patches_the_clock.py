"""Stops every clock of its process, then takes its time. Caught by: evaluation-time."""

import time

from honest.pair_counts import Pairs

sleep = time.sleep
for name in ("time", "monotonic", "perf_counter", "process_time"):
    setattr(time, name, lambda: 0.0)


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        sleep(0.2)
        return super().predict(tokens, scored_from)


def load(arrays):
    return Cheat(arrays["counts"])
