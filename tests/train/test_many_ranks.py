"""Protects many ranks: together they learn what one learns, stay alike, and obey rank 0."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speedrun
from speedrun.data.shards import write_shard

SCRIPT = Path(__file__).with_name("rank.py")
Facts = list[dict[str, Any]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(world: int, **task: Any) -> Facts:
    """What each rank of a company saw; they all end well."""
    folder = Path(task["folder"])
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    environment = os.environ | {
        "PYTHONPATH": str(Path(speedrun.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"rank{rank}of{world}.json").read_text()) for rank in range(world)]


def run_alone(monkeypatch: pytest.MonkeyPatch, **task: Any) -> dict[str, Any]:
    """The same training in this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = importlib.util.spec_from_file_location("rank", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    facts: dict[str, Any] = module.main(task)
    return facts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    steps = np.random.default_rng(3).integers(0, 3, 4_000)
    write_shard(tmp_path / "text_train_000000.bin", np.cumsum(steps) * 5 % 32)
    return tmp_path


EVERYTHING: dict[str, dict[str, Any]] = {
    "model": {"ngram_order": 2},
    "optim": {"grad_clip": 0.2, "normalize_rows": True},
    "average": {"ema_decay": 0.5, "choose": "best", "choose_batches": 1},
    "train": {"max_steps": 6, "validate_every_s": 1e-9},
}


@pytest.mark.parametrize(
    "world", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_ranks_learn_what_one_learns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    task = {"folder": str(folder), "changes": EVERYTHING}
    alone, company = run_alone(monkeypatch, **task), run_ranks(world, **task)
    assert company[0]["nats"] == pytest.approx(alone["nats"], abs=1e-4)
    for name, weight in alone["weights"].items():
        # Newton-Schulz blows up the rounding of sums in another order.
        torch.testing.assert_close(
            torch.tensor(weight), torch.tensor(company[0]["weights"][name]), rtol=1e-3, atol=5e-4
        )
    for rank, other in enumerate(company):
        assert other["sums"] == company[0]["sums"] and len(other["sums"]) == 6
        assert other["weights"] == company[0]["weights"]
        # Progress has crossed in float32.
        assert other["progress"] == pytest.approx(alone["progress"], abs=1e-6)
        assert other["looks"] == (alone["looks"] if rank == 0 else [])
    assert alone["looks"] == [1, 2, 3, 4, 5, 6]
    chosen = [line for line in alone["lines"] if line.startswith("chosen:")]
    assert chosen and [line[:14] for line in company[0]["lines"] if "chosen:" in line] == [
        line[:14] for line in chosen
    ]


def test_replicas_are_alike_over_200_steps_until_a_signal_to_rank_0(folder: Path) -> None:
    changes = {
        "train": {"max_steps": 10_000, "log_every_steps": 50},
        "optim": {"grad_clip": 0.5, "muon_weight_decay": 0.1},
    }
    # What rank 0 says in a step, all do after it: the signal comes during the last one.
    company = run_ranks(2, folder=str(folder), changes=changes, stop={"0": 199})
    assert [(each["steps"], each["interrupted"]) for each in company] == [(200, True)] * 2
    one, other = company
    assert one["sums"] == other["sums"] and len(set(one["sums"])) == 200
    assert one["weights"] == other["weights"]
    logged = [line.split() for line in one["lines"] if line.startswith("replicas:2 ")]
    assert [words[1] for words in logged] == [f"step:{n}" for n in (50, 100, 150, 200, 200)]
    assert logged[-1][2] == f"checksum:{one['sums'][-1] % 2**64:016x}"


def test_a_replica_that_drifts_ends_the_run_by_name(folder: Path) -> None:
    changes = {"train": {"max_steps": 20, "log_every_steps": 5}}
    company = run_ranks(2, folder=str(folder), changes=changes, drift={"1": 7})
    for each in company:
        assert each["error"].startswith(
            "ReplicaError: step 10: the weights of rank 1 have checksum"
        )
        assert len(each["nats"]) == 10


@pytest.mark.slow
def test_a_checkpoint_serves_any_number_of_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train": {"max_steps": 8}, "average": {"ema_decay": 0.5}}
    task = {"folder": str(folder), "changes": changes}
    whole = run_ranks(2, **task)[0]
    for first, second in ((2, 2), (2, 1), (1, 2)):
        (folder / "checkpoint" / "state.safetensors").unlink(missing_ok=True)
        half: Callable[..., Any] = {
            1: lambda **more: [run_alone(monkeypatch, **task, saves=True, **more)],
            2: lambda **more: run_ranks(2, **task, saves=True, **more),
        }.__getitem__
        broken = half(first)(stop={"0": 5})[0]
        assert broken["interrupted"] and broken["steps"] in (5, 6)
        rest = half(second)()[0]
        assert (rest["steps"], len(rest["nats"])) == (8, 8 - broken["steps"])
        if (first, second) == (2, 2):
            assert rest["weights"] == whole["weights"]
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(
                torch.tensor(weight), torch.tensor(rest["weights"][name]), rtol=1e-3, atol=5e-4
            )
