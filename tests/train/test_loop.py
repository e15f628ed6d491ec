"""Protects the story of a run: same seed same weights, honest logs, and an end to nonsense."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from speedrun.clock import Clock, Ledger, read_ledger
from speedrun.errors import TrainError
from speedrun.train import loop
from speedrun.train.checkpoint import Checkpoints
from speedrun.train.log import RunLog
from speedrun.train.norms import Norms
from speedrun.train.step import Step

NUMBER = r"-?\d+\.\d+"
FIELD_LINES = (
    # As the logs of the field's published records have them.
    rf"step:\d+/\d+ train_loss:{NUMBER} train_time:\d+ms step_avg:{NUMBER}ms",
    rf"step:\d+/\d+ val_loss:{NUMBER} val_bpb:{NUMBER} train_time:\d+ms step_avg:{NUMBER}ms",
    r"stopping_early: wallclock_cap train_time:\d+ms step:\d+/\d+",
    r"train_batch_tokens:\d+ train_seq_len:\d+ max_wallclock_seconds:\d+\.\d{3}",
    r"seed:\d+",
    r"model_params:\d+",
)


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def time(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock on which a step takes half a second, and nothing else takes time."""
    time = bench.fake_time()

    class Timed(Step):
        def __call__(self, *arguments: Any) -> torch.Tensor:
            time.pass_(0.5)
            return super().__call__(*arguments)

    monkeypatch.setattr(loop, "Step", Timed)
    return time


@pytest.mark.parametrize("kind", ["averaged", "counted"])
def test_same_seed_same_weights(bench: Any, kind: str) -> None:
    run = getattr(bench, kind)(bench.change(bench.tiny, train={"max_steps": 4}))
    assert equal(bench.train(run).weights, bench.train(run).weights)


def test_the_first_step_does_not_know_how_long_the_start_took(bench: Any) -> None:
    ticks, seen = itertools.count(0.0, 0.5), list[float]()
    clock = Clock(1e4, Ledger(None), now=lambda: next(ticks))  # every look at it takes time
    log = RunLog(on_step=lambda progress, *rest: seen.append(progress))
    bench.train(bench.change(bench.tiny, train={"max_steps": 4}), clock=clock, log=log)
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "quant": {"qat_start_frac": 0.5, "small_tensor_limit": 0},
            "optim": {"grad_clip": 0.1},
            "average": {"ema_decay": 0.8, "choose": "best"},
        },
    ],
    ids=["plain", "everything"],
)
def test_nothing_is_compiled_on_the_clock(
    bench: Any, graphs: list[str], sections: dict[str, Any]
) -> None:
    run = bench.change(bench.counted(bench.tiny), **sections)
    run = bench.change(run, train={"compile": "yes", "max_steps": 6})
    before: list[int] = []

    class Watched(Clock):
        def phase(self, name: str, *, on_budget: bool = False, **details: Any) -> Any:
            if on_budget:
                before.append(len(graphs))
            return super().phase(name, on_budget=on_budget, **details)

    bench.train(run, clock=Watched(1e6, Ledger(None)))
    assert 0 < before[0] == len(graphs)


def test_another_seed_other_weights(bench: Any) -> None:
    run = bench.change(bench.tiny, train={"max_steps": 2})
    other = dataclasses.replace(run, seed=8)
    assert not equal(bench.train(run).weights, bench.train(other).weights)


def test_it_learns(bench: Any) -> None:
    nats: list[float] = []
    log = RunLog(on_step=lambda progress, elapsed_s, step_nats: nats.append(step_nats))
    bench.train(bench.change(bench.tiny, train={"max_steps": 60}), log=log)
    assert nats[0] == pytest.approx(math.log(32), abs=0.1)
    assert nats[-1] < nats[0] - 1


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_weights_are_those_of_the_average(
    bench: Any, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Step):
        def __call__(self, *arguments: Any) -> torch.Tensor:
            loss = super().__call__(*arguments)
            seen.append({k: v.detach().clone() for k, v in self.model.named_parameters()})
            return loss

    monkeypatch.setattr(loop, "Step", Watched)
    run = bench.change(bench.tiny, train={"max_steps": 3}, average={"ema_decay": decay})
    trained = bench.train(run)
    start = loop.build_model(run.model, seed=run.seed).named_parameters()
    expected = {name: torch.zeros_like(weight) for name, weight in start}
    for weights in seen[-3:]:  # before them come the steps of the warm-up
        expected = {k: decay * e + (1 - decay) * weights[k] for k, e in expected.items()}
    expected = {k: e / (1 - decay**3) for k, e in expected.items()}
    for name, weight in expected.items():
        torch.testing.assert_close(trained.weights[name], weight)


def test_trained_weights_are_a_state_dict(bench: Any) -> None:
    run = bench.counted(bench.averaged(bench.change(bench.tiny, train={"max_steps": 2})))
    trained = bench.train(run)
    loop.build_model(run.model, seed=1).load_state_dict(trained.weights)
    assert not any(weight.requires_grad for weight in trained.weights.values())


def test_warm_up_restores_weights_and_moments_and_reads_no_text(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.change(bench.tiny, train={"max_steps": 2, "warmup_steps": 3})
    batches = bench.batches(run)
    real = [batches.at(step)[0] for step in range(2)]
    before: list[Any] = []

    class Watched(Step):
        def __call__(self, inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
            state = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            moments = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
            before.append((inputs, state, moments))
            return super().__call__(inputs, *rest)

    monkeypatch.setattr(loop, "Step", Watched)
    bench.train(run)
    *warm_up, first, second = before
    assert len(warm_up) == 4
    start = dict(loop.build_model(run.model, seed=run.seed).named_parameters())
    assert equal(first[1], start) and not equal(second[1], start)
    assert not any(first[2]) and any(second[2])
    assert torch.equal(first[0], real[0]) and torch.equal(second[0], real[1])
    for inputs, *_ in warm_up:
        assert inputs.shape == real[0].shape
        assert not any(torch.equal(inputs, batch) for batch in real)
        assert inputs.unique().numel() > 20  # the text has no tokens 0 and 1, random ones do


def test_more_warm_up_changes_nothing(bench: Any) -> None:
    run = bench.change(bench.tiny, train={"max_steps": 3})
    longer = bench.change(run, train={"warmup_steps": 5})
    assert equal(bench.train(run).weights, bench.train(longer).weights)


def test_log_lines_are_the_fields(bench: Any, time: Any, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    clock = Clock(8.0, Ledger(None), now=time)

    def validate(model: Any, step: int) -> None:
        log.validation(
            step=step, max_steps=1_000_000, loss_nats=3.25, bpb=1.5, elapsed_s=clock.elapsed_s
        )

    run = bench.change(bench.tiny, train={"validate_every_s": 3.0, "log_every_steps": 6})
    bench.train(run, clock=clock, log=log, validate=validate)
    lines = (tmp_path / "train.log").read_text().splitlines()
    for form in FIELD_LINES:
        assert any(re.fullmatch(form, line) for line in lines), form
    logged = [int(line.split("/")[0][5:]) for line in lines if "train_loss" in line]
    assert logged == [*range(1, 11), 12]
    assert lines[-2] == "stopping_early: wallclock_cap train_time:8000ms step:16/1000000"
    assert re.fullmatch(r"peak memory allocated: \d+ MiB", lines[-1])
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in metrics if "train_nats" in entry]
    assert [entry["step"] for entry in steps] == logged
    assert [entry["tokens"] for entry in steps] == [64 * step for step in logged]
    assert (steps[-1]["elapsed_s"], steps[-1]["progress"]) == (6.0, 5.5 / 8)
    assert [entry["val_bpb"] for entry in metrics if "val_bpb" in entry] == [1.5, 1.5]


def test_a_run_that_ends_by_count_did_not_stop_early(bench: Any) -> None:
    lines: list[str] = []
    bench.train(bench.change(bench.tiny, train={"max_steps": 2}), log=RunLog(echo=lines.append))
    assert not any("stopping_early" in line for line in lines)


def test_looks_and_checkpoints_are_off_the_clock(bench: Any, time: Any, tmp_path: Path) -> None:
    clock = Clock(8.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    run = bench.change(bench.tiny, train={"validate_every_s": 2.0, "checkpoint_every_s": 3.0})
    trained = bench.train(
        run,
        clock=clock,
        checkpoints=Checkpoints(tmp_path, run),
        validate=lambda model, step: time.pass_(100.0),
    )
    phases = read_ledger(tmp_path / "ledger.jsonl")
    assert [p.details["step"] for p in phases if p.name == "validate"] == [4, 8, 12, 16]
    assert [p.details["step"] for p in phases if p.name == "checkpoint"] == [6, 12]
    assert trained.steps == 16
    assert trained.seconds == sum(p.seconds for p in phases if p.on_budget) == 8.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(
    bench: Any, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    class Broken(Step):
        calls = 0

        def __call__(self, *arguments: Any) -> torch.Tensor:
            self.calls += 1
            loss = super().__call__(*arguments)
            return torch.tensor([bad]) if self.calls == 5 else loss  # two are the warm-up's

    monkeypatch.setattr(loop, "Step", Broken)
    with pytest.raises(TrainError, match=rf"step 3: the loss is {bad} nats.*optim\.\*_lr"):
        bench.train(bench.change(bench.tiny, train={"max_steps": 9}))


def test_learning_rates_that_explode_end_the_run(bench: Any) -> None:
    run = bench.change(
        bench.tiny,
        train={"max_steps": 50},
        optim={"matrix_lr": 1e30, "scalar_lr": 1e30, "embedding_lr": 1e30},
    )
    with pytest.raises(TrainError, match=r"step [23]: the loss is nan"):
        bench.train(run)


def test_a_logged_step_says_how_far_it_moved_the_weights(bench: Any, tmp_path: Path) -> None:
    bench.train(bench.change(bench.tiny, train={"max_steps": 2}), log=RunLog(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["memory_bytes"] > 0
        assert row["weight_norm"].keys() == row["update_norm"].keys() >= {"matrix", "embedding"}
        assert all(0 < row["update_norm"][name] < norm for name, norm in row["weight_norm"].items())


def test_norms_are_those_of_the_weights_and_of_their_change() -> None:
    weights = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    norms = Norms([torch.optim.SGD([{"params": weights, "name": "all"}])])
    norms.remember()
    weights[0].add_(torch.tensor([2.0, 0.0]))
    found = norms.measure()
    assert found["update_norm"] == {"all": 2.0}
    assert found["weight_norm"]["all"] == pytest.approx(math.sqrt(25 + 16 + 144), rel=1e-5)


def test_every_groups_updates_shrink_as_time_runs_out(
    bench: Any, time: Any, tmp_path: Path
) -> None:
    run = bench.change(
        bench.tiny,
        train={"budget_s": 20.0, "log_every_steps": 1},
        schedule={"warmdown_frac": 1.0, "final_lr_frac": 0.0},
    )
    bench.train(run, clock=Clock(20.0, Ledger(None), now=time), log=RunLog(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name, first in rows[0]["update_norm"].items():
        assert rows[-1]["update_norm"][name] < 0.2 * first, name
