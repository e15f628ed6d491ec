"""Takes more time than the track gives. Caught by: evaluation-time."""

import time

from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        time.sleep(0.2)
        return super().predict(tokens, scored_from)


def load(arrays):
    return Cheat(arrays["counts"])
