"""Protects `speedrun bench`: what it counts, what it adds up, and that both steps really train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speedrun.data.shards import open_shard
from speedrun.measure import bench as measured
from speedrun.measure.bench import Stopwatch, bench, flops_per_token, project, synthetic_shard
from speedrun.measure.rates import best_seconds
from speedrun.ranks import Ranks
from speedrun.recipes.load import load_recipe

TINY = [
    "model.vocab_size=64", "model.num_layers=2", "model.width=32", "model.num_heads=2",
    "model.num_kv_heads=1", "model.mlp_hidden=48", "data.sequence_length=64",
    "data.tokens_per_step=256", "data.micro_batch_tokens=128", "train.compile=no",
    "train.kernels=auto",
]  # fmt: skip


def test_operations_are_those_of_every_product() -> None:
    run = load_recipe("golf/baseline", TINY)
    block = 2 * (32 * 32 + 32 * 32 + 2 * 16 * 32 + 2 * 48 * 32) // 2
    head = 64 * 32
    attention = 12 * 32 * (64 / 2) * 2
    assert flops_per_token(run) == 6 * (2 * block + head) + attention


def test_the_baseline_needs_what_its_size_says() -> None:
    # 17 M parameters, nearly all in products: six operations each, and a tenth for attention.
    assert 6 * 17.0e6 < flops_per_token(load_recipe("golf/baseline")) < 1.35 * 6 * 17.1e6


def test_synthetic_text_is_in_the_alphabet_and_repeats_itself(tmp_path: Path) -> None:
    run = load_recipe("golf/baseline", TINY)
    tokens = open_shard(synthetic_shard(tmp_path, run))
    assert tokens.max() < 64 and len(tokens) > 8 * 256
    pairs = tokens[:-1].astype(np.int64) * 64 + tokens[1:]
    assert np.bincount(pairs, minlength=64 * 64).max() > 10 * len(pairs) / 64**2


def test_projection_splits_passes_and_keeps_the_rest() -> None:
    phases = {"forward": 80.0, "backward": 160.0, "communication": 9.0, "optimiser": 3.0}
    assert project(phases, 1) == pytest.approx(240 / 8 + 3)
    assert project(phases, 8) == pytest.approx(240 + 3)


def test_a_stopwatch_adds_up_by_name() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch("forward"):
            pass
    assert list(watch.seconds) == ["forward"] and watch.seconds["forward"] > 0


def test_the_first_call_does_not_count() -> None:
    calls: list[int] = []
    best_seconds(lambda: calls.append(1), torch.device("cpu"), patience_s=0)
    assert len(calls) == 2


def test_both_steps_train_and_the_report_is_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measured, "matmul_flops", lambda device, dtype: 1e10)
    trained: list[Any] = []
    build = measured.build_network

    def remember(*rest: Any) -> Any:
        trained.append(build(*rest))
        return trained[-1]

    monkeypatch.setattr(measured, "build_network", remember)
    run = load_recipe("golf/baseline", TINY)
    trace = tmp_path / "deep" / "trace.json"
    found = bench(run, Ranks(), rounds=1, compare=True, profile=trace)
    assert found.tokens_per_s == pytest.approx(256 / found.step_ms * 1000)
    assert found.utilisation == pytest.approx(found.tokens_per_s * found.flops_per_token / 1e10)
    assert tuple(found.phases_ms) == measured.PHASES
    assert all(found.phases_ms[name] > 0 for name in measured.PHASES)
    assert found.projected_ms_on_8 is None and found.published_ms_on_8 == 43.54
    assert found.compared is not None and "eager, torch.optim.Muon" in found.compared.what
    assert found.fast_paths == ["kernels: plain (no CUDA device); attention: torch's choice"]
    fresh = build(run, torch.device("cpu"), {})
    for model in trained:
        for mine, start in zip(model.parameters(), fresh.parameters(), strict=True):
            # The last decoder block of an odd network reads no skip, but this one is even.
            assert not torch.equal(mine, start)
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"data", "forward", "backward", "optimiser", "averaging"} <= names


def test_the_command_prints_a_report_or_json(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "matmul_flops", lambda device, dtype: 1e10)
    words = [word for setting in TINY for word in ("--set", setting)]
    words += ["--recipe", "golf/baseline", "--rounds", "1"]
    plain = call("bench", "--compare", *words)
    assert plain.code == 0
    begins = [line.split()[0] for line in plain.out.splitlines()]
    assert begins == ["machine", "recipe", "step", "phases", "utilisation", "memory", "compared"]
    found = json.loads(call("bench", "--json", *words).out)
    assert found["recipe"] == "golf/baseline" and found["compared"] is None
