"""A network small enough to train hundreds of times, its shards, and time that only tests move."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speedrun.clock import Clock, Ledger
from speedrun.config import (
    AverageConfig,
    CountConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    RunConfig,
    TrainConfig,
)
from speedrun.data.batches import Batches, open_batches
from speedrun.data.shards import write_shard
from speedrun.ranks import Ranks
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained, train

VOCAB = 32
TINY = RunConfig(
    name="test/tiny",
    seed=7,
    model=ModelConfig(
        vocab_size=VOCAB, num_layers=2, width=16, num_heads=2, num_kv_heads=1, mlp_hidden=24
    ),
    optim=OptimConfig(matrix_lr=0.02, embedding_lr=0.01, scalar_lr=0.01),
    data=DataConfig(
        sequence_length=16, tokens_per_step=64, micro_batch_tokens=64, order="shuffled"
    ),
    train=TrainConfig(warmup_steps=1, compile="no", precision="float32", checkpoint_every_s=0.0),
    quant=QuantConfig(small_tensor_limit=0),
)


class FakeTime:
    """A time source that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


def change(run: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """`run` with keys of its sections replaced: `change(run, train={"max_steps": 3})`."""
    replaced = {
        name: dataclasses.replace(getattr(run, name), **keys) for name, keys in sections.items()
    }
    return dataclasses.replace(run, **replaced)


def counted(run: RunConfig) -> RunConfig:
    """`run` with n-grams and copying."""
    model = dataclasses.replace(run.model, ngram_order=2, match_order=2)
    count = CountConfig(entries=(60,), min_count=2, held_out_tokens=1_000)
    return dataclasses.replace(run, model=model, count=count)


def averaged(run: RunConfig) -> RunConfig:
    """`run` with a moving average that starts half-way."""
    return dataclasses.replace(run, average=AverageConfig(ema_decay=0.8, start_frac=0.5))


def write_text(folder: Path, *, tokens: int = 4_000, vocab_size: int = VOCAB) -> list[Path]:
    """Two training shards in which each token depends on the one before."""
    dice = np.random.default_rng(3)
    noise = dice.integers(0, 3, tokens)
    stream = (2 + np.cumsum(noise) * 5 % (vocab_size - 2)).astype(np.uint16)
    paths = [folder / f"text_train_00000{i}.bin" for i in range(2)]
    for path, part in zip(paths, np.array_split(stream, 2), strict=True):
        write_shard(path, part)
    return paths


def windowed(run: RunConfig) -> RunConfig:
    """`run` with the mean of the weights after every second step, of the last two of them."""
    return dataclasses.replace(run, average=AverageConfig(swa_every_steps=2, swa_window=2))


@dataclasses.dataclass
class Bench:
    """Starts runs on one text."""

    shards: list[Path]

    def batches(self, run: RunConfig = TINY) -> Batches:
        return open_batches(self.shards, run)

    def train(
        self,
        run: RunConfig,
        *,
        clock: Clock | None = None,
        ranks: Ranks | None = None,
        log: RunLog | None = None,
        **rest: Any,
    ) -> Trained:
        return train(
            run,
            self.batches(run),
            clock or Clock(1e6, Ledger(None)),
            ranks or Ranks(),
            log or RunLog(),
            **rest,
        )

    tiny = TINY
    change = staticmethod(change)
    counted = staticmethod(counted)
    averaged = staticmethod(averaged)
    windowed = staticmethod(windowed)
    fake_time: Callable[[], FakeTime] = FakeTime


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other where tensors are this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The code of every graph that `torch.compile` makes from here on; run as it is."""
    found: list[str] = []
    real = torch.compile

    def keep(module: Any, inputs: Any) -> Any:
        found.append(module.code)
        return module.forward

    def compile_(function: Any, **options: Any) -> Any:
        return real(function, backend=keep, **options)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    yield found
    torch._dynamo.reset()
