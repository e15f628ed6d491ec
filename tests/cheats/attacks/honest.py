"""Honest: the floor that every gain is measured against."""

from tests.cheats.attacks.base import Pairs


def load(arrays):
    return Pairs(arrays["counts"].astype("f4"))
