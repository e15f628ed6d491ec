"""More than four thousand pieces: sparse counts of pairs in scipy over counts of single ones."""

import numpy as np
from scipy.sparse import csr_array


class Sparse:
    kind = "fixed"

    def __init__(self, pairs):
        self.pairs, self.vocab_size = pairs, pairs.shape[0]
        single = pairs.sum(axis=0) + 0.1
        self.single = single / single.sum()
        self.kinds = np.diff(pairs.indptr) + 1

    def predict(self, tokens, scored_from):
        last = tokens[np.arange(tokens.shape[1]) >= scored_from[:, None]]
        counts, kinds = self.pairs[last].toarray(), self.kinds[last][:, None]
        known = (counts + kinds * self.single) / (counts.sum(axis=1, keepdims=True) + kinds)
        return np.log(known).astype(np.float32)

    def observe(self, tokens):
        pass


def load(arrays):
    size = len(arrays["starts"]) - 1
    parts = arrays["counts"].astype(float), arrays["next"].astype(np.int32), arrays["starts"]
    return Sparse(csr_array(parts, shape=(size, size)))
