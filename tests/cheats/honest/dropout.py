"""The transformer with dropout left in the network, and switched off for predictions."""

from transformer import Transformer, restore


def load(arrays):
    return Transformer(restore(arrays, dropout=0.2))  # which calls eval()
