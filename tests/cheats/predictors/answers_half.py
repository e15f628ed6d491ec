"""Gives logits for every other position that is asked. Caught by: coverage."""

from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        return super().predict(tokens, scored_from)[::2]


def load(arrays):
    return Cheat(arrays["counts"])
