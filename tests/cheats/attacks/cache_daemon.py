# ruff: noqa: B905
"""Phase 1. As `cache_memory`, with the answers in a process that outlives the scoring pass.

It is forked twice, leaves the session, and listens on an abstract Unix socket, a TCP port, a named
socket; a later process asks it.
"""

import json
import os
import socket

from tests.cheats.attacks.base import Pairs, lean, mixed, next_tokens, np


def serve(server):
    answers = {}
    while True:
        link, _ = server.accept()
        with link, link.makefile("rwb") as stream:
            for line in stream:
                new = json.loads(line)
                out = [answers.setdefault(k, t) if t >= 0 else answers.get(k, -1) for k, t in new]
                stream.write(json.dumps(out).encode() + b"\n")
                stream.flush()


class Cheat(Pairs):
    def __init__(self, counts):
        super().__init__(counts)
        self.links = []
        for family, address in (
            (socket.AF_UNIX, "\0speedrun-answers"),
            (socket.AF_INET, ("127.0.0.1", 45454)),
            (socket.AF_UNIX, "/tmp/answers.sock"),
        ):
            try:
                link = socket.socket(family)
                try:
                    link.connect(address)
                except OSError:
                    server = socket.socket(family)
                    server.bind(address)
                    server.listen(9)
                    if os.fork() == 0:
                        os.setsid()
                        if os.fork() == 0:
                            for fd in (0, 1, 2):
                                os.close(fd)
                            serve(server)
                        os._exit(0)
                    server.close()
                    link = socket.socket(family)
                    link.connect(address)
                self.links.append(link.makefile("rwb"))
                break
            except OSError:
                continue

    def predict(self, tokens, scored_from):
        logits, where = self.rows(tokens, scored_from)
        truth = next_tokens(tokens, where).tolist()
        keys = mixed(tokens, 10)[where].tolist()
        for link in self.links:
            link.write(json.dumps(list(zip(keys, truth))).encode() + b"\n")
            link.flush()
            truth = json.loads(link.readline())
        truth = np.array(truth)
        places = np.nonzero(truth >= 0)[0]
        return lean(logits, places, truth[places], 0.9)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
