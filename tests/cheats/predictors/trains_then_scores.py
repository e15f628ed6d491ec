"""Learns a window's pairs and scores the window afterwards. Caught by: future-flip."""

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        rows = []
        for window, mask in zip(tokens, asked, strict=True):
            learnt = np.exp(self.table)
            np.add.at(learnt, (window[:-1], window[1:]), 30.0)
            rows.append(np.log(learnt[window[mask]]))
        return np.concatenate(rows)


def load(arrays):
    return Cheat(arrays["counts"])
