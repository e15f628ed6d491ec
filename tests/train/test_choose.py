"""Protects the choice of what is packed: by the rule of the recipe, on the clock, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speedrun.clock import Clock, Ledger, read_ledger
from speedrun.errors import ConfigError
from speedrun.train import choose as choose_module
from speedrun.train import loop
from speedrun.train.log import RunLog
from speedrun.train.step import Step


def recipe(bench: Any, decay: float, **train: Any) -> Any:
    return bench.change(
        bench.tiny,
        train={"max_steps": 40} | train,
        average={"ema_decay": decay, "choose": "best", "choose_batches": 3},
    )


@pytest.mark.parametrize(
    ("steps", "rate", "chosen"),
    # While all is learnt the last weights are ahead; then they jump about, and their mean is.
    [(40, 0.02, "last"), (300, 0.2, "average")],
)
def test_the_better_reader_of_the_next_batches_is_packed(
    bench: Any, tmp_path: Path, steps: int, rate: float, chosen: str
) -> None:
    lines: list[str] = []
    run = bench.change(
        recipe(bench, 0.9, max_steps=steps),
        optim={"matrix_lr": rate},
        schedule={"warmdown_frac": 0.0},
    )
    clock = Clock(1e6, Ledger(tmp_path / "ledger.jsonl"))
    trained = bench.train(run, clock=clock, log=RunLog(echo=lines.append))
    (phase,) = (p for p in read_ledger(tmp_path / "ledger.jsonl") if p.name == "choose")
    assert phase.on_budget and phase.details["chosen"] == chosen
    # Read again, by hand: the batches after the last step.
    model = loop.build_model(run.model, seed=1)
    model.load_state_dict(trained.weights)
    batches = bench.batches(run)
    with torch.no_grad():
        nats = [float(model.loss(*batches.at(step))) for step in range(steps, steps + 3)]
    assert sum(nats) / 3 == pytest.approx(phase.details[chosen], abs=1e-5)
    assert phase.details[chosen] == min(phase.details["average"], phase.details["last"])
    assert any(line.startswith(f"chosen:{chosen} train_nats average:") for line in lines)


@pytest.mark.parametrize(("measure_s", "is_late"), [(0.01, False), (0.9, True)])
def test_choosing_keeps_to_the_budget_or_is_left(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measure_s: float, is_late: bool
) -> None:
    time = bench.fake_time()

    class Timed(Step):
        measured = 0

        def __call__(self, *arguments: Any) -> torch.Tensor:
            time.pass_(0.5)
            return super().__call__(*arguments)

        def measure(self, *arguments: Any) -> torch.Tensor:
            self.measured += 1
            # Rehearsed twice in a hundredth of a second.
            time.pass_(measure_s if self.measured > 2 else 0.01)
            return super().measure(*arguments)

    monkeypatch.setattr(loop, "Step", Timed)
    clock = Clock(5.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    trained = bench.train(recipe(bench, 0.5, max_steps=1_000_000), clock=clock)
    # 2 x 3 batches of 0.01 s, times the safety, do not fit beside a tenth step.
    assert trained.steps == 9
    phases = {p.name: p for p in read_ledger(tmp_path / "ledger.jsonl")}
    assert ("discarded choose" in phases) and phases["choose"].on_budget
    assert ("chosen" in phases["choose"].details) != is_late
    assert trained.seconds <= 5.0
    assert trained.seconds == pytest.approx(4.5 if is_late else 4.56)


def test_the_rule_is_the_average_unless_the_recipe_says_more(bench: Any, tmp_path: Path) -> None:
    run = bench.averaged(bench.change(bench.tiny, train={"max_steps": 3}))
    bench.train(run, clock=Clock(1e6, Ledger(tmp_path / "ledger.jsonl")))
    assert "choose" not in {p.name for p in read_ledger(tmp_path / "ledger.jsonl")}
    with pytest.raises(ConfigError, match=r"average\.choose must be average where there is none"):
        bench.change(bench.tiny, average={"choose": "best"})


def test_rehearsing_the_choice_reads_no_training_text(bench: Any) -> None:
    class Spy:
        seen: list[torch.Tensor] = []  # noqa: RUF012

        def measure(self, inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.seen.append(inputs)
            return torch.zeros(1)

    run, spy = recipe(bench, 0.5), Spy()
    from speedrun.ranks import Ranks

    choose_module.rehearse_choice(spy, run, Ranks(), Clock(1.0, Ledger(None)))  # type: ignore[arg-type]
    real = [bench.batches(run).at(step)[0] for step in range(3)]
    assert len(spy.seen) == 2
    assert not any(torch.equal(one, other) for one in spy.seen for other in real)
