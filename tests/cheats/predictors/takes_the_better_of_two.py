"""Scores each token by whichever of two models likes it more. Caught by: target-flip."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        first = self.table[tokens]
        first = first - np.log(np.exp(first).sum(axis=-1, keepdims=True))
        second = np.full_like(first, -np.log(self.vocab_size))
        following = np.roll(tokens, -1, axis=1)[:, :, None]
        first_likes = np.take_along_axis(first, following, 2)
        better = first_likes > np.take_along_axis(second, following, 2)
        better[:, -1] = True
        chosen = np.where(better, first, second)
        return chosen[np.arange(tokens.shape[1]) >= scored_from[:, None]]


def load(arrays):
    return Cheat(arrays["counts"])
