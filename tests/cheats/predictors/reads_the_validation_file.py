"""Opens the shard whose path it was built with. Caught by: metric."""

from pathlib import Path

import numpy as np
from honest.pair_counts import Pairs


def load(arrays):
    path = Path(arrays["path"].tobytes().decode())
    counts = arrays["counts"].copy()
    if path.exists():
        tokens = np.fromfile(path, "<u2")[512:]
        np.add.at(counts, (tokens[:-1], tokens[1:]), 50)
    return Pairs(counts)
