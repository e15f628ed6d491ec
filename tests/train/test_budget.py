"""Protects the budget: whatever stalls, nothing in the ledger or in the weights is late."""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.clock import Clock, Ledger, Phase, read_ledger
from speedrun.errors import BudgetError
from speedrun.train import count, loop
from speedrun.train.log import RunLog
from speedrun.train.loop import Trained
from speedrun.train.step import Step


@dataclass
class Script:
    """How long everything takes; when a list runs out, its last entry goes on."""

    budget_s: float
    warm_up_s: float
    steps_s: list[float]
    logs_s: list[float] = field(default_factory=lambda: [0.0])
    checkpoint_every_s: float = 0.0
    num_steps: int = 0
    """Steps begun so far, without those of the warm-up."""

    def step_s(self) -> float:
        self.num_steps += 1
        return self.steps_s[min(self.num_steps, len(self.steps_s)) - 1]

    def log_s(self) -> float:
        return self.logs_s[min(self.num_steps, len(self.logs_s)) - 1]


@dataclass
class Played:
    trained: Trained
    phases: list[Phase]
    script: Script

    @property
    def spent_s(self) -> float:
        return sum(phase.seconds for phase in self.phases if phase.on_budget)

    @property
    def was_thrown_away(self) -> bool:
        return any(phase.details.get("discarded_steps") for phase in self.phases)


class Saves:
    """Checkpoints that take time and keep nothing."""

    def __init__(self, time: Any) -> None:
        self.time = time

    def save(self, *state: Any) -> None:
        self.time.pass_(3.0)

    def restore(self, *state: Any) -> None:
        self.time.pass_(3.0)


def play(bench: Any, script: Script) -> Played:
    """Run the real loop on scripted time; a step adds 1 to `skip_weights` instead of learning."""
    time = bench.fake_time()

    class Scripted(Step):
        def __call__(self, *arguments: Any) -> torch.Tensor:
            is_warm_up = not self.optimizers[0].param_groups[0].get("is_begun")
            time.pass_(script.warm_up_s if is_warm_up else script.step_s())
            with torch.no_grad():
                self.model.skip_weights += 1
            return torch.tensor([3.0])

    class Log(RunLog):
        def line(self, text: str) -> None:
            if "train_loss" in text:
                time.pass_(script.log_s())

    run = bench.change(
        bench.tiny, train={"checkpoint_every_s": script.checkpoint_every_s, "log_every_steps": 1}
    )

    def begin() -> bool:
        begun[0].param_groups[0]["is_begun"] = True
        return False

    begun: list[torch.optim.Optimizer] = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "ledger.jsonl"

        def build(model: Any, optimizers: Any, *rest: Any) -> Step:
            begun.extend(optimizers)
            return Scripted(model, optimizers, *rest)

        patch.setattr(loop, "Step", build)
        clock = Clock(script.budget_s, Ledger(path), now=time)
        try:
            trained = bench.train(
                run, clock=clock, log=Log(), checkpoints=Saves(time), should_stop=begin
            )
        finally:
            spent_s = sum(phase.seconds for phase in read_ledger(path) if phase.on_budget)
            assert spent_s <= script.budget_s
        assert trained.seconds == spent_s
        return Played(trained, read_ledger(path), script)


seconds = st.floats(0.02, 0.3)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    steps_s = draw(st.lists(seconds, min_size=1, max_size=20))
    for place in draw(st.lists(st.integers(0, len(steps_s) - 1), max_size=3)):
        steps_s[place] *= draw(st.floats(1, 60))
    return Script(
        budget_s=draw(st.floats(0.1, 4)),
        warm_up_s=draw(seconds),
        steps_s=steps_s,
        logs_s=draw(st.lists(st.floats(0, 0.05), min_size=1, max_size=5)),
        checkpoint_every_s=draw(st.sampled_from([0.0, 0.3])),
    )


@settings(max_examples=80, deadline=None)
@given(script=scripts())
def test_budget_holds_on_any_schedule(bench: Any, script: Script) -> None:
    try:
        played = play(bench, script)
    except BudgetError as error:
        assert f"{script.budget_s:.3f} s" in str(error)
        assert script.num_steps <= 1
        return
    assert played.trained.steps == script.num_steps - played.was_thrown_away
    assert played.trained.weights["skip_weights"].unique().tolist() == [1 + played.trained.steps]
    assert played.phases[-1].details["steps"] == played.trained.steps


def test_little_time_is_left_unused(bench: Any) -> None:
    dice = random.Random(1)
    shares = []
    for _ in range(60):
        steps_s = [dice.uniform(0.1, 0.13) * dice.choice([1] * 30 + [3]) for _ in range(80)]
        script = Script(budget_s=dice.uniform(2, 4), warm_up_s=0.12, steps_s=steps_s)
        played = play(bench, script)
        recent_s = steps_s[max(script.num_steps - 20, 0) : script.num_steps]
        shares.append((script.budget_s - played.spent_s) / max(recent_s))
    assert statistics.median(shares) <= 1.5


def test_a_stall_far_from_the_end_is_thrown_away_too(bench: Any) -> None:
    played = play(bench, Script(10.0, 0.5, [0.5, 0.5, 0.5, 60.0]))
    assert played.trained.steps == 3
    assert played.trained.weights["skip_weights"].unique().tolist() == [4.0]
    assert played.spent_s == pytest.approx(1.5)
    discarded = played.phases[-1]
    assert (discarded.name, discarded.on_budget) == ("discarded train", False)
    assert (discarded.details["steps"], discarded.details["discarded_steps"]) == (3, 1)
    assert discarded.seconds == pytest.approx(60)


def test_log_lines_after_the_last_step_are_not_late(bench: Any) -> None:
    played = play(bench, Script(1.0, 0.5, [0.5], logs_s=[0.0, 0.25]))
    assert played.trained.steps == 2
    assert played.spent_s == 1.0


def test_a_step_is_not_begun_that_might_not_fit(bench: Any) -> None:
    played = play(bench, Script(2.0, 0.3, [0.3]))
    assert played.trained.steps == played.script.num_steps == 6


def test_a_slow_step_is_remembered(bench: Any) -> None:
    played = play(bench, Script(1.95, 0.1, [0.1, 0.7, 0.1]))
    assert played.script.num_steps == 7  # 1.3 s are spent then, and another 0.7 s would not fit
    assert not played.was_thrown_away


def test_a_budget_below_one_step_names_both_numbers(bench: Any) -> None:
    with pytest.raises(BudgetError, match=r"0\.250 s does not hold one step of 0\.300 s"):
        play(bench, Script(0.25, 0.3, [0.3]))


def test_a_first_step_that_overruns_is_no_result(bench: Any) -> None:
    with pytest.raises(BudgetError, match=r"1\.000 s does not hold one step of 5\.000 s"):
        play(bench, Script(1.0, 0.3, [5.0]))


@pytest.fixture
def slow_counting(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A clock on which counting takes `constant_s` and `per_token_s`; training takes no time."""

    class Counting:
        def __init__(self) -> None:
            self.time = bench.fake_time()
            self.constant_s, self.per_token_s, self.stall_s = 0.1, 1e-4, 0.0
            self.sizes: list[int] = []
            self.count_ngrams = count.count_ngrams

        def __call__(self, tokens: Any, *rest: Any) -> Any:
            self.time.pass_(self.constant_s + self.per_token_s * len(tokens))
            self.time.pass_(self.stall_s if self.sizes else 0.0)
            self.sizes.append(len(tokens))
            return self.count_ngrams(tokens, *rest)

        def run(self, budget_s: float) -> tuple[Trained, list[Phase]]:
            def step(progress: float, elapsed_s: float, nats: float) -> None:
                self.time.pass_(budget_s / 10)

            run = bench.counted(bench.tiny)
            clock = Clock(budget_s, Ledger(None), now=self.time)
            trained = bench.train(run, clock=clock, log=RunLog(on_step=step))
            return trained, clock.ledger.phases

    counting = Counting()
    monkeypatch.setattr(count, "REHEARSAL_TOKENS", 64)
    monkeypatch.setattr(count, "count_ngrams", counting)
    yield counting


@pytest.mark.parametrize(
    ("budget_s", "constant_s", "per_token_s"),
    [
        *((budget_s, 0.1, 1e-4) for budget_s in (0.2, 0.35, 0.5, 1.0, 3.0, 60.0)),
        *((budget_s, 0.001, 1e-3) for budget_s in (0.05, 0.2, 1.0, 5.0, 60.0)),
    ],
)
def test_counting_keeps_to_its_share(
    slow_counting: Any, budget_s: float, constant_s: float, per_token_s: float
) -> None:
    slow_counting.constant_s, slow_counting.per_token_s = constant_s, per_token_s
    trained, phases = slow_counting.run(budget_s)
    (phase,) = (phase for phase in phases if phase.name == "count")
    assert phase.on_budget
    assert phase.seconds <= 0.35 * budget_s + 1e-5
    assert phase.details["tokens"] == (slow_counting.sizes[1:] or [0])[-1]
    assert sum(phase.seconds for phase in phases if phase.on_budget) <= budget_s
    assert trained.steps > 0


def test_a_long_budget_counts_all_text_at_once(slow_counting: Any) -> None:
    slow_counting.run(600.0)
    assert slow_counting.sizes == [64, 3_000]  # of 4,000 tokens 1,000 are held out


def test_a_middling_budget_counts_longer_and_longer_tails(slow_counting: Any) -> None:
    slow_counting.constant_s, slow_counting.per_token_s = 0.1, 1e-3
    slow_counting.run(6.0)
    sizes = slow_counting.sizes[1:]
    assert sizes == sorted(sizes)
    assert 1_000 < sizes[-1] < 3_000


def test_a_tiny_budget_counts_nothing_and_trains_all_the_same(slow_counting: Any) -> None:
    trained, _ = slow_counting.run(0.25)
    assert slow_counting.sizes == [64]
    assert trained.weights["ngram.codes_2"].numel() == 0
    assert trained.steps > 0


def test_counting_that_stalls_beyond_the_budget_names_both_numbers(slow_counting: Any) -> None:
    slow_counting.stall_s = 50.0
    with pytest.raises(BudgetError, match=r"took 50\.\d+ s, the budget of 10\.000 s"):
        slow_counting.run(10.0)


def test_rehearsing_reads_no_training_text(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(count, "count_ngrams", lambda tokens, *rest: seen.append(tokens))
    count.rehearse(bench.counted(bench.tiny), Clock(1.0, Ledger(None)))
    (tokens,) = seen
    assert len(tokens) == count.REHEARSAL_TOKENS
    assert set(tokens.tolist()) == set(range(bench.tiny.model.vocab_size))
