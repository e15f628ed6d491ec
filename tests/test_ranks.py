"""Protects many ranks: two real processes learn from one batch what a single process learns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import speedrun
from speedrun.errors import ConfigError
from speedrun.ranks import Ranks

WORKER = """
import json, sys
from pathlib import Path

import torch

from speedrun.clock import Clock, Ledger
from speedrun.config import *
from speedrun.data.batches import open_batches
from speedrun.data.shards import list_shards
from speedrun.ranks import Ranks
from speedrun.train.log import RunLog
from speedrun.train.loop import train

folder = Path(sys.argv[1])
ranks = Ranks.from_environment()
run = RunConfig(
    name="test/ranks",
    model=ModelConfig(
        vocab_size=32, num_layers=2, width=16, num_heads=2, num_kv_heads=1, mlp_hidden=24,
        ngram_order=2,
    ),
    count=CountConfig(entries=(40,), min_count=2, held_out_tokens=1_000),
    data=DataConfig(sequence_length=16, tokens_per_step=64, micro_batch_tokens=32),
    average=AverageConfig(ema_decay=0.5),
    train=TrainConfig(
        max_steps=4, warmup_steps=1, compile="no", precision="float32", validate_every_s=1e-9
    ),
)
nats, looks = [], []
log = RunLog(on_step=lambda progress, elapsed_s, step_nats: nats.append(step_nats))
batches = open_batches(list_shards(folder, "train"), run)
asked = iter(range(100))
trained = train(
    run, batches, Clock(1e6, Ledger(None)), ranks, log,
    validate=lambda model, step: looks.append(step),
    # A signal that reaches one process only; without RANK it reaches the only one.
    should_stop=lambda: next(asked) == 3 and ranks.is_main,
)
shared = ranks.broadcast(1.5 + ranks.rank, -2.0 * ranks.rank)
pair = [torch.full((2, 3), float(ranks.rank)), torch.tensor(10.0 * ranks.rank)]
ranks.average(pair)
facts = {
    "nats": nats, "looks": looks, "steps": trained.steps, "interrupted": trained.interrupted,
    "weights": {name: tensor.tolist() for name, tensor in trained.weights.items()},
    "shared": shared, "average": [tensor.tolist() for tensor in pair],
}
(folder / f"rank{ranks.rank}of{ranks.world}.json").write_text(json.dumps(facts))
ranks.close()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, **variables: object) -> subprocess.Popen[str]:
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment |= {
        "PYTHONPATH": str(Path(speedrun.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What one process alone and two processes together report of the same run."""
    import numpy as np

    from speedrun.data.shards import write_shard

    folder = tmp_path_factory.mktemp("ranks")
    steps = np.random.default_rng(3).integers(0, 3, 4_000)
    write_shard(folder / "text_train_000000.bin", np.cumsum(steps) * 5 % 32)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    processes = [start(folder, RANK=rank, LOCAL_RANK=rank, **group) for rank in range(2)]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["worker", str(folder)])
            patch.setattr(torch.cuda, "is_available", lambda: False)
            exec(WORKER, {})
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_two_ranks_learn_what_one_learns(facts: dict[str, dict]) -> None:
    alone, together = facts["rank0of1"], facts["rank0of2"]
    assert alone["nats"] == pytest.approx(together["nats"], abs=1e-4)
    for name, weight in alone["weights"].items():
        # Newton-Schulz blows up the rounding of sums in another order.
        torch.testing.assert_close(
            torch.tensor(weight), torch.tensor(together["weights"][name]), rtol=1e-3, atol=2e-4
        )


def test_replicas_are_identical(facts: dict[str, dict]) -> None:
    one, other = facts["rank0of2"], facts["rank1of2"]
    for key in ("weights", "nats", "steps", "interrupted"):
        assert one[key] == other[key]


def test_a_signal_to_rank_0_stops_all(facts: dict[str, dict]) -> None:
    assert [(each["steps"], each["interrupted"]) for each in facts.values()] == [(3, True)] * 3


def test_only_rank_0_looks_and_saves(facts: dict[str, dict]) -> None:
    assert facts["rank0of2"]["looks"] == facts["rank0of1"]["looks"] == [1, 2, 3]
    assert facts["rank1of2"]["looks"] == []


def test_broadcast_gives_rank_0s_values(facts: dict[str, dict]) -> None:
    assert [each["shared"] for each in facts.values()] == [[1.5, 0.0]] * 3


def test_average_keeps_shapes(facts: dict[str, dict]) -> None:
    expected = [[[0.5] * 3] * 2, 5.0]
    assert facts["rank0of2"]["average"] == facts["rank1of2"]["average"] == expected
    assert facts["rank0of1"]["average"] == [[[0.0] * 3] * 2, 0.0]


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
