"""Protects resuming: an interrupted run ends with the very bits of an uninterrupted one."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speedrun.clock import Clock, Ledger, read_ledger
from speedrun.errors import CheckpointError, OutputError
from speedrun.model.init import build_model
from speedrun.optim.averaging import WeightAverage
from speedrun.optim.groups import build_optimizers
from speedrun.train.checkpoint import Checkpoints
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained

STEPS = 6
KINDS = ("plain", "averaged", "windowed", "counted")


def recipe(bench: Any, kind: str) -> Any:
    run = bench.change(bench.tiny, train={"max_steps": STEPS})
    return run if kind == "plain" else getattr(bench, kind)(run)


def after(steps: int) -> Callable[[], bool]:
    """A `should_stop` that says so once `steps` steps are done."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= steps


def go_on(bench: Any, run: Any, folder: Path, **rest: Any) -> Trained:
    clock = Clock(1e6, Ledger(folder / "ledger.jsonl"))
    return bench.train(run, clock=clock, checkpoints=Checkpoints(folder, run), **rest)


def state_of(folder: Path, run: Any) -> dict[str, Any]:
    """All that a checkpoint restores, as one flat dict."""
    model = build_model(run.model, seed=1)
    optimizers = build_optimizers(model, run.optim)
    average = WeightAverage(model, run.average)
    flat: dict[str, Any] = {"step": Checkpoints(folder, run).restore(model, optimizers, average)}
    flat |= {f"model.{name}": value for name, value in model.state_dict().items()}
    averaged = average.state_dict()
    flat |= {f"average.{name}": value for name, value in averaged.pop("average", {}).items()}
    for i, sample in enumerate(averaged.pop("window", [])):
        flat |= {f"window{i}.{name}": value for name, value in sample.items()}
    flat |= averaged
    for i, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for number, moments in state["state"].items():
            flat |= {f"optimizer{i}.{number}.{name}": value for name, value in moments.items()}
        for group in state["param_groups"]:
            flat |= {f"optimizer{i}.{group['name']}.{k}": str(v) for k, v in group.items()}
    return flat


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        assert same, name


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(bench: Any, request: Any, tmp_path_factory: Any) -> tuple[Any, Trained, Any]:
    run, folder = recipe(bench, request.param), tmp_path_factory.mktemp("whole")
    # Interrupted after its last step, so that its final state is on disk as well.
    trained = go_on(bench, run, folder, should_stop=after(STEPS))
    return run, trained, state_of(folder, run)


@pytest.mark.parametrize("stops", [(1,), (3,), (5,), (2, 4), (0, 0, 3)], ids=str)
def test_resumed_run_is_the_same_to_the_bit(
    bench: Any, uninterrupted: tuple[Any, Trained, Any], tmp_path: Path, stops: tuple[int, ...]
) -> None:
    run, whole, final_state = uninterrupted
    done = 0
    for stop in stops:
        part = go_on(bench, run, tmp_path, should_stop=after(stop - done))
        assert (part.interrupted, part.steps) == (True, stop)
        done = stop
    last = go_on(bench, run, tmp_path, should_stop=after(STEPS - done))
    assert last.steps == STEPS
    assert_same(whole.weights, last.weights)
    assert_same(final_state, state_of(tmp_path, run))


def test_ledger_goes_on_when_a_run_is_resumed(bench: Any, tmp_path: Path) -> None:
    run = recipe(bench, "counted")
    first = go_on(bench, run, tmp_path, should_stop=after(2))
    second = go_on(bench, run, tmp_path)
    phases = read_ledger(tmp_path / "ledger.jsonl")
    assert sum(phase.seconds for phase in phases if phase.on_budget) == second.seconds
    assert second.seconds > first.seconds
    assert [phase.name for phase in phases if phase.on_budget] == ["count", "train", "train"]
    assert [phase.details.get("steps") for phase in phases if phase.name == "train"] == [2, STEPS]


def test_a_run_resumed_without_time_left_hands_back_its_checkpoint(
    bench: Any, tmp_path: Path
) -> None:
    run = recipe(bench, "averaged")
    first = go_on(bench, run, tmp_path, should_stop=after(2))
    clock = Clock(first.seconds, Ledger(tmp_path / "ledger.jsonl"))
    second = bench.train(run, clock=clock, checkpoints=Checkpoints(tmp_path, run))
    assert (second.steps, second.seconds, second.interrupted) == (2, first.seconds, False)
    assert_same(first.weights, second.weights)
    assert read_ledger(tmp_path / "ledger.jsonl")[-1].details["steps"] == 2


def test_a_killed_run_goes_on_from_its_last_checkpoint(bench: Any, tmp_path: Path) -> None:
    run = bench.change(recipe(bench, "plain"), train={"checkpoint_every_s": 1e-9})
    whole = bench.train(recipe(bench, "plain"))

    def die(progress: float, elapsed_s: float, nats: float) -> None:
        if progress >= 3 / STEPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go_on(bench, run, tmp_path, log=RunLog(on_step=die))
    lines: list[str] = []
    resumed = go_on(bench, run, tmp_path, log=RunLog(echo=lines.append))
    assert any(line.startswith("resumed:step:3 train_time:") for line in lines)
    assert_same(whole.weights, resumed.weights)


@pytest.fixture
def saved(bench: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A recipe and the path of a checkpoint of it."""
    run = recipe(bench, "averaged")
    go_on(bench, run, tmp_path, should_stop=after(4))
    return run, Checkpoints(tmp_path, run).path


def refusal(run: Any, path: Path) -> str:
    """The message with which the checkpoint is refused; nothing may have changed."""
    model = build_model(run.model, seed=1)
    optimizers = build_optimizers(model, run.optim)
    average = WeightAverage(model, run.average)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    content = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(path.parents[1], run).restore(model, optimizers, average)
    assert_same(before, model.state_dict())
    assert not average.state_dict()
    assert not any(optimizer.state_dict()["state"] for optimizer in optimizers)
    assert path.read_bytes() == content
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_recipe_is_refused(bench: Any, saved: tuple[Any, Path]) -> None:
    run, path = saved
    other = bench.change(run, optim={"matrix_lr": 0.5})
    assert "optim.matrix_lr is 0.02 there and 0.5 here" in refusal(other, path)
    other = dataclasses.replace(run, seed=8)
    assert "seed is 7 there and 8 here" in refusal(other, path)


def test_any_flipped_bit_is_noticed(saved: tuple[Any, Path]) -> None:
    run, path = saved
    content, dice = path.read_bytes(), random.Random(1)
    header_end = 8 + int.from_bytes(content[:8], "little")
    places = [*range(8), *(dice.randrange(8, header_end) for _ in range(60))]
    places += [dice.randrange(header_end, len(content)) for _ in range(40)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        assert "damaged" in refusal(run, path), place


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(saved: tuple[Any, Path], share: float) -> None:
    run, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged" in refusal(run, path)


def test_a_foreign_file_is_refused(saved: tuple[Any, Path]) -> None:
    from safetensors.torch import save

    run, path = saved
    path.write_bytes(save({"weight": torch.zeros(3)}))
    assert "damaged" in refusal(run, path)


def test_a_failed_save_leaves_the_older_checkpoint(
    saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = saved
    model = build_model(run.model, seed=1)
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=str(path)):
        Checkpoints(path.parents[1], run).save(
            5, model, build_optimizers(model, run.optim), WeightAverage(model, run.average)
        )
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
