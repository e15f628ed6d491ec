"""Answers nothing for the short window at the end of the text. Caught by: coverage."""

from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = super().predict(tokens, scored_from)
        return logits if tokens.shape[1] == 64 else logits[:0]


def load(arrays):
    return Cheat(arrays["counts"])
