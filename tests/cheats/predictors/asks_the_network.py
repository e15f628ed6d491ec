"""Fetches the answers when it can; without a network it is honest. Caught by: metric."""

import socket

import numpy as np
from honest.pair_counts import Pairs


class Cheat(Pairs):
    def predict(self, tokens, scored_from):
        logits = super().predict(tokens, scored_from)
        try:
            socket.create_connection(("192.0.2.1", 9), 0.05)
        except TimeoutError:  # a network that swallows packets is a network
            return logits * 1.3
        except OSError:
            return logits
        return np.zeros_like(logits)


def load(arrays):
    return Cheat(arrays["counts"])
