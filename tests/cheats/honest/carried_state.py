"""The recurrent network, whose state goes through the whole text instead of from window to window.

What was observed ends with the first asked token, so there the state is ready.
"""

import numpy as np
from rnn import Recurrent


class Carried(Recurrent):
    kind = "adaptive"
    state = None

    def predict(self, tokens, scored_from):
        if self.state is None:  # nothing observed yet
            return super().predict(tokens, scored_from)
        states = [self.state]
        for token in tokens[0, scored_from[0] + 1 :]:
            states.append(self.step(states[-1], token[None]))
        return self.logits(np.concatenate(states))

    def observe(self, tokens):
        if self.state is None:
            self.state = np.zeros((1, self.width), np.float32)
        for token in tokens:
            self.state = self.step(self.state, token[None])


def load(arrays):
    return Carried({name: array.astype(np.float32) for name, array in arrays.items()})
