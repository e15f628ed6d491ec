"""Protects the choice of kernels: only what computes the same, and faster, is ever taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from speedrun.errors import ConfigError
from speedrun.kernels import choose
from speedrun.kernels.choose import is_chosen
from speedrun.ranks import Ranks
from speedrun.train import fast_paths
from speedrun.train.fast_paths import Finding, Trial, measure, settle_fast_paths


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled, and nothing stays chosen."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    yield
    choose.choose(frozenset())


def trial(fast: Any, ways: tuple[str, ...] = ("mlp",)) -> Trial:
    def call(x: Tensor) -> Tensor:
        return fast(x) if any(map(is_chosen, ways)) else (x * 2).relu()

    return Trial(name="MLP", call=call, inputs=(torch.randn(9, 5),), ways=ways)


def test_without_a_gpu_everything_is_plain_and_said_to_be(bench: Any) -> None:
    (line,) = settle_fast_paths(bench.tiny, Ranks())
    assert line == "kernels: plain (no CUDA device); attention: torch's choice"
    assert choose.chosen() == frozenset()


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"kernels": "on"}, "train.kernels = 'on'"),
        ({"fp8_head": True, "kernels": "auto"}, "train.fp8_head = true"),
    ],
)
def test_what_is_asked_for_by_force_is_refused_without_a_gpu(
    bench: Any, train: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"{said} cannot be: no CUDA device"):
        settle_fast_paths(bench.change(bench.tiny, train=train), Ranks())


def test_another_result_is_found_out() -> None:
    (finding,) = measure(trial(lambda x: (x * 2.2).relu()), rounds=1, calls=1)
    assert finding.failure == "differs by 0.1" and finding.difference == pytest.approx(0.1)


def test_another_gradient_is_found_out() -> None:
    def same_value(x: Tensor) -> Tensor:
        return (x.detach() * 2).relu() + 0 * x

    (finding,) = measure(trial(same_value), rounds=1, calls=1)
    assert finding.failure == "differs by 1"


def test_what_is_not_a_number_is_found_out() -> None:
    (finding,) = measure(trial(lambda x: (x * float("nan")).relu()), rounds=1, calls=1)
    assert finding.failure == "differs by nan"


def test_what_cannot_run_is_named_with_its_reason() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")

    (finding,) = measure(trial(broken), rounds=1, calls=1)
    assert str(finding) == "mlp cannot run: no kernel image is available"


def test_what_agrees_is_timed() -> None:
    (finding,) = measure(trial(lambda x: x.relu() * 2), rounds=1, calls=1)
    assert finding.ratio > 0 and not finding.failure


def found(**ratios: float) -> list[Finding]:
    return [Finding(way=way, ratio=ratio) for way, ratio in ratios.items()]


@pytest.mark.parametrize(
    ("findings", "by_force", "expected"),
    [
        (found(cross_entropy=1.04, head=1.01), False, ""),
        (found(cross_entropy=1.06, head=1.2), False, "head"),
        (found(cross_entropy=0.5, head=0.4), True, "cross_entropy"),
        ([Finding(way="head", failure="cannot run: x")], False, ""),
    ],
    ids=["too-little", "the-best", "by-force", "none-runs"],
)
def test_a_kernel_needs_a_margin(findings: Any, by_force: bool, expected: str) -> None:
    one = trial(None, ways=("cross_entropy", "head"))
    assert fast_paths._best(one, findings, by_force=by_force) == expected


def test_forcing_what_does_not_run_is_refused() -> None:
    broken = [Finding(way="mlp", failure="cannot run: no kernel image")]
    with pytest.raises(ConfigError, match="for MLP none runs here: mlp cannot run: no kernel"):
        fast_paths._best(trial(None), broken, by_force=True)


def test_trials_are_those_of_the_recipe(bench: Any) -> None:
    names = [each.name for each in fast_paths.trials(bench.tiny, Ranks())]
    assert names == [
        "head and loss",
        "MLP",
        "residual mix and norm",
        "Newton-Schulz",
        "attention",
    ]
    exclusive = bench.change(bench.tiny, model={"xsa_layers": 1})
    assert "exclusive attention" in [each.name for each in fast_paths.trials(exclusive, Ranks())]
    # With tables the loss is another.
    counted = [each.name for each in fast_paths.trials(bench.counted(bench.tiny), Ranks())]
    assert "head and loss" not in counted


def test_plain_trials_run_forwards_and_backwards(bench: Any) -> None:
    exclusive = bench.change(bench.tiny, model={"xsa_layers": 1})
    for each in fast_paths.trials(exclusive, Ranks()):
        contestant = fast_paths._Contestant(each, "")
        assert len(contestant.results) >= 1 + each.learns
        assert all(result.isfinite().all() for result in contestant.results)


def test_the_8_bit_head_needs_sides_of_sixteen(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    odd = bench.change(bench.tiny, model={"vocab_size": 40})
    with pytest.raises(ConfigError, match=r"model\.vocab_size to be a multiple of 16, found 40"):
        fast_paths._check_fp8(odd, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"8\.9 or more.*\(8, 0\)"):
        fast_paths._check_fp8(odd, torch.device("cuda"))
