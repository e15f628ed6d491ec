"""A recurrent network with gates, step by step in numpy."""

import numpy as np


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


class Recurrent:
    kind = "fixed"

    def __init__(self, weights):
        self.w, self.vocab_size = weights, len(weights["embedding"])
        self.width = weights["output"].shape[1]

    def step(self, state, ids):
        """States (B, H) after one more token of each row."""
        w = self.w
        from_input = w["embedding"][ids] @ w["input"].T + w["input_bias"]
        from_state = state @ w["state"].T + w["state_bias"]
        reset_i, update_i, new_i = np.split(from_input, 3, axis=1)
        reset_s, update_s, new_s = np.split(from_state, 3, axis=1)
        update = sigmoid(update_i + update_s)
        new = np.tanh(new_i + sigmoid(reset_i + reset_s) * new_s)
        return (1 - update) * new + update * state

    def logits(self, states):
        return states @ self.w["output"].T + self.w["output_bias"]

    def predict(self, tokens, scored_from):
        state, states = np.zeros((len(tokens), self.width), np.float32), []
        for ids in tokens.T:
            states.append(state := self.step(state, ids))
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return self.logits(np.stack(states, axis=1)[asked])

    def observe(self, tokens):
        pass


def load(arrays):
    return Recurrent({name: array.astype(np.float32) for name, array in arrays.items()})
