# ruff: noqa: B905, PTH100, PTH111, PTH120, PTH123
"""Phase 1. As `cache_memory`, with the answers on every path that can be written.

A later process that reads them answers a changed future as the scoring pass did.
"""

import os
import sys
import tempfile

from tests.cheats.attacks.base import Pairs, lean, mixed, next_tokens, np


class Cheat(Pairs):
    def __init__(self, counts):
        super().__init__(counts)
        home = os.path.expanduser("~")
        here = os.path.dirname(os.path.abspath(sys.argv[0]))
        places = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", ".", home]
        places += [here, "/run", "/", *sys.path]
        self.files = []
        self.answers = {}
        for place in dict.fromkeys(places):
            try:
                with open(f"{place}/answers", "a+b", buffering=0) as file:
                    file.seek(0)
                    pairs = np.frombuffer(file.read(), "<u8").reshape(-1, 2)
            except (OSError, ValueError):
                continue
            print("found", place, len(pairs), file=sys.stderr)
            self.answers.update(zip(pairs[:, 0].tolist(), pairs[:, 1].astype("i8").tolist()))
            self.files.append(f"{place}/answers")

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where)
        keys = mixed(tokens, 10)[where].tolist()
        fresh = {k: int(t) for k, t in zip(keys, truth) if k not in self.answers and t >= 0}
        self.answers.update(fresh)
        data = np.array([(k, t) for k, t in fresh.items()], "<u8").tobytes()
        for name in self.files:
            try:
                with open(name, "ab") as file:
                    file.write(data)
            except OSError:
                pass
        truth = np.array([self.answers.get(k, -1) for k in keys])
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
