"""Protects what ranks tell each other, and that a process knows its place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import speedrun
from speedrun.errors import ConfigError
from speedrun.ranks import Ranks, peak_resident_bytes

WORKER = """
import json, sys, warnings

warnings.simplefilter("error")
import torch

from speedrun.ranks import Ranks

ranks = Ranks.from_environment()
mine = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * 10**ranks.rank
total, rank0s = torch.full((3,), 1.5 + ranks.rank), torch.full((2,), 7.0 - ranks.rank)
ranks.total(total)
ranks.spread([rank0s])
under_way = ranks.scatter_sums(mine), ranks.gather(mine[:1].bfloat16())
facts = {
    "broadcast": ranks.broadcast(1.5 + ranks.rank, -2.0 * ranks.rank),
    "total": total.tolist(), "spread": rank0s.tolist(),
    "scattered": under_way[0].wait().tolist(), "gathered": under_way[1].wait().tolist(),
    "collected": ranks.collect(2**62 + ranks.rank),
}
print(json.dumps(facts))
ranks.close()
"""


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    """What two ranks heard."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(Path(speedrun.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    heard = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            heard.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return heard


def test_all_hear_rank_0(told: list[dict[str, Any]]) -> None:
    assert [each["broadcast"] for each in told] == [[1.5, 0.0]] * 2
    assert [each["spread"] for each in told] == [[7.0, 7.0]] * 2


def test_sums_are_everybodys(told: list[dict[str, Any]]) -> None:
    assert [each["total"] for each in told] == [[4.0] * 3] * 2
    assert [each["scattered"] for each in told] == [[[11.0, 22.0]], [[33.0, 44.0]]]


def test_gathered_slices_are_in_order(told: list[dict[str, Any]]) -> None:
    assert [each["gathered"] for each in told] == [[[1.0, 2.0], [10.0, 20.0]]] * 2
    assert [each["collected"] for each in told] == [[2**62, 2**62 + 1]] * 2


def test_alone_every_message_is_there_at_once() -> None:
    ranks, stack = Ranks(), torch.arange(6.0).view(3, 2)
    assert ranks.scatter_sums(stack).wait() is stack
    assert ranks.gather(stack).wait() is stack
    assert (ranks.collect(5), ranks.broadcast(1.0)) == ([5], (1.0,))
    before = stack.clone()
    ranks.total(stack)
    ranks.spread([stack])
    assert torch.equal(stack, before)


def test_peak_memory_is_that_of_the_process() -> None:
    assert Ranks().peak_memory_bytes() == peak_resident_bytes() > 50_000_000  # torch alone


def test_without_variables_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
    ranks.close()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "must be numbers"),
        ({"WORLD_SIZE": "2"}, "RANK = unset is no place among WORLD_SIZE = 2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 is no place among WORLD_SIZE = 2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "rank 1 cannot join.*MASTER_ADDR"),
    ],
)
def test_impossible_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Ranks.from_environment()
