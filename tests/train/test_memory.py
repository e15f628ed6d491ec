"""Protects against page faults: memory that is freed and asked for again stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from speedrun.train import memory
from speedrun.train.memory import keep_freed_memory

CHURN = """
import resource, torch
from speedrun.train.memory import keep_freed_memory
assert keep_freed_memory()
faults = []
for _ in range(12):
    held = [torch.zeros(size) for size in (1_000_000, 4_000_000, 2_000_000, 7_000_000)]
    del held
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[5])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
def test_large_tensors_are_not_faulted_in_again() -> None:
    # 56 MB a round are 13,672 pages; the first rounds find places for all.
    faults = int(subprocess.check_output([sys.executable, "-c", CHURN], text=True))
    assert faults < 2000


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
