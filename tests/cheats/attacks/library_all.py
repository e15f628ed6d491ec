# ruff: noqa: PTH110, PTH118, PTH123
"""Phase 1, track pocket. Reads Python's standard library on the judge's machine, where the text is.

Files, then the compiled files, then the sources that the running interpreter holds.
"""

import os
import sys
import sysconfig

from tests.cheats.attacks.base import Pairs, np


class Cheat(Pairs):
    kind = "fixed"

    def __init__(self, counts):
        super().__init__(counts)
        folder = sysconfig.get_path("stdlib")
        found = {}
        for place, _folders, files in os.walk(folder):
            for name in files:
                if name.endswith(".py") and "site-packages" not in place:
                    try:
                        with open(os.path.join(place, name), "rb") as file:
                            found[os.path.join(place, name)] = len(file.read())
                    except OSError:
                        pass
        print("LIBRARY", folder, len(found), sum(found.values()), file=sys.stderr)
        for path in [*sys.path, "/usr/lib/python3", "/usr/lib/python3.11", "/usr/local/lib"]:
            print("PATH", path, os.path.exists(path), file=sys.stderr)
        # One nat where anything was found: this attack asks only whether it can be read.
        if sum(found.values()) > 1_000_000:
            self.table = np.zeros_like(self.table)


def load(arrays):
    return Cheat(arrays["counts"].astype("f4"))
