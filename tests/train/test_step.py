"""Protects the optimiser step: how a batch is cut and in which precision it runs changes little."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from speedrun.errors import ConfigError
from speedrun.model.init import build_model
from speedrun.optim.groups import build_optimizers
from speedrun.ranks import Ranks
from speedrun.train import step
from speedrun.train.step import Step


def make(run: Any, ranks: Ranks | None = None) -> Step:
    model = build_model(run.model, seed=run.seed)
    return Step(model, build_optimizers(model, run.optim), run, ranks or Ranks())


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("micro_batch_tokens", [16, 32])
def test_micro_batches_make_one_big_batch(bench: Any, micro_batch_tokens: int, clip: float) -> None:
    whole = bench.change(bench.tiny, optim={"grad_clip": clip})
    cut = bench.change(whole, data={"micro_batch_tokens": micro_batch_tokens})
    steps = make(whole), make(cut)
    assert [each.micro_batches for each in steps] == [1, 64 // micro_batch_tokens]
    for number in range(3):
        losses = [each(*bench.batches(whole).at(number), 0.1 * number) for each in steps]
        torch.testing.assert_close(*losses)
    for one, other in zip(*(each.model.parameters() for each in steps), strict=True):
        # Newton-Schulz blows up the rounding of sums in another order.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("tokens_per_step", "micro_batch_tokens", "world", "expected"),
    [
        (64, 64, 1, 1),
        (64, 16, 1, 4),
        (96, 64, 1, 2),
        (96, 80, 1, 2),
        (80, 32, 1, 5),
        (128, 48, 2, 2),
    ],
)
def test_micro_batches_are_the_smallest_even_split(
    bench: Any, tokens_per_step: int, micro_batch_tokens: int, world: int, expected: int
) -> None:
    data = {"tokens_per_step": tokens_per_step, "micro_batch_tokens": micro_batch_tokens}
    assert make(bench.change(bench.tiny, data=data), Ranks(world=world)).micro_batches == expected


def test_a_batch_that_ranks_cannot_share_is_refused(bench: Any) -> None:
    with pytest.raises(ConfigError, match=r"tokens_per_step = 64 is 4 sequences.* 3 ranks"):
        make(bench.tiny, Ranks(world=3))


@pytest.mark.parametrize(
    ("precision", "has_bf16", "expected"),
    [
        ("float32", True, None),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
    ],
)
def test_precision_is_chosen_once(
    bench: Any, monkeypatch: pytest.MonkeyPatch, precision: str, has_bf16: bool, expected: Any
) -> None:
    native = torch.bfloat16 if has_bf16 else torch.float32
    monkeypatch.setattr(step, "matmul_dtype", lambda device_type: native)
    chosen = make(bench.change(bench.tiny, train={"precision": precision}))
    assert chosen.dtype == expected
    assert ("bfloat16" if expected else "float32") in chosen.description


def test_bf16_learns_about_the_same_and_keeps_float32_weights(bench: Any) -> None:
    steps = [
        make(bench.change(bench.tiny, train={"precision": precision}))
        for precision in ("float32", "bfloat16")
    ]
    for number in range(5):
        one, other = (float(each(*bench.batches().at(number), 0.0)) for each in steps)
        assert one == pytest.approx(other, abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in steps[1].model.parameters())


def test_compiling_without_a_compiler_is_refused_or_skipped(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.compile = 'yes' needs a C\+\+ compiler"):
        make(bench.change(bench.tiny, train={"compile": "yes"}))
    assert not make(bench.change(bench.tiny, train={"compile": "auto"})).compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # inductor itself uses what is deprecated
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++ on this machine")
def test_compiled_step_is_the_eager_one(bench: Any) -> None:
    steps = [
        make(bench.change(bench.counted(bench.tiny), train={"compile": compile_}))
        for compile_ in ("no", "yes")
    ]
    for number in range(3):
        losses = [each(*bench.batches().at(number), 0.1) for each in steps]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
