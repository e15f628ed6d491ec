"""The clock and its ledger: what is booked is what was spent, and nobody edits it unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speedrun.clock import Clock, Ledger, read_ledger
from speedrun.errors import OutputError, SubmissionError


class FakeTime:
    """A time source that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def test_only_budgeted_phases_spend(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(60.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with clock.phase("warm-up"):
        time.pass_(30)
    with clock.phase("train", on_budget=True):
        time.pass_(15)
        assert clock.elapsed_s == pytest.approx(15)
        assert clock.progress == pytest.approx(0.25)
    assert clock.remaining_s == pytest.approx(45)


def test_clock_stands_still_while_an_inner_phase_runs(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(60.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with clock.phase("train", on_budget=True):
        time.pass_(10)
        with clock.phase("validate"):
            time.pass_(100)
            assert clock.elapsed_s == pytest.approx(10)
        time.pass_(5)
    assert clock.elapsed_s == pytest.approx(15)
    names = [(phase.name, phase.seconds) for phase in read_ledger(tmp_path / "ledger.jsonl")]
    assert names == [
        ("train", pytest.approx(10)),
        ("validate", pytest.approx(100)),
        ("train", pytest.approx(5)),
    ]


def test_what_follows_the_last_kept_step_is_discarded(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(20.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with clock.phase("train", on_budget=True):
        clock.keep(clock.elapsed_s)
        time.pass_(19)
        clock.keep(clock.elapsed_s)
        time.pass_(4)  # a stalled step
        assert clock.elapsed_s == pytest.approx(23)
    assert clock.elapsed_s == pytest.approx(19)
    phases = read_ledger(tmp_path / "ledger.jsonl")
    assert [(phase.name, phase.on_budget, phase.seconds) for phase in phases] == [
        ("train", True, pytest.approx(19)),
        ("discarded train", False, pytest.approx(4)),
    ]


def test_nothing_that_was_not_kept_is_on_the_budget_after_an_error(
    tmp_path: Path, time: FakeTime
) -> None:
    clock = Clock(20.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with pytest.raises(ZeroDivisionError), clock.phase("train", on_budget=True):
        clock.keep(clock.elapsed_s)
        time.pass_(25)
        raise ZeroDivisionError
    assert clock.elapsed_s == 0


def test_an_inner_phase_begins_where_the_outer_one_was_kept(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(20.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with clock.phase("train", on_budget=True):
        time.pass_(20)
        clock.keep(clock.elapsed_s)
        time.pass_(1)  # log lines
        with clock.phase("checkpoint"):
            time.pass_(5)
        time.pass_(2)
    names = [(phase.name, phase.seconds) for phase in read_ledger(tmp_path / "ledger.jsonl")]
    assert names == [
        ("train", pytest.approx(20)),
        ("checkpoint", pytest.approx(6)),
        ("train", 0),
        ("discarded train", pytest.approx(2)),
    ]


def test_clock_and_ledger_add_up_to_the_same_number(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(20.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    kept_s = 0.0
    for step in range(50):
        with clock.phase("train", on_budget=True):
            time.pass_(0.0123456789 * (step + 1))
            kept_s = clock.elapsed_s
            clock.keep(kept_s)
            time.pass_(0.0000123)
    assert Ledger(tmp_path / "ledger.jsonl").budgeted_s == clock.elapsed_s == kept_s


def test_a_resumed_clock_continues_its_account(tmp_path: Path, time: FakeTime) -> None:
    path = tmp_path / "ledger.jsonl"
    with Clock(60.0, Ledger(path), now=time).phase("train", on_budget=True):
        time.pass_(25)
    time.pass_(10_000)
    clock = Clock(60.0, Ledger(path), now=time)
    assert clock.elapsed_s == pytest.approx(25)
    with clock.phase("train", on_budget=True):
        time.pass_(5)
    assert sum(phase.seconds for phase in read_ledger(path)) == pytest.approx(30)


def test_a_phase_is_booked_even_when_it_fails(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(60.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with pytest.raises(ZeroDivisionError), clock.phase("train", on_budget=True):
        time.pass_(3)
        raise ZeroDivisionError
    assert clock.elapsed_s == pytest.approx(3)


@pytest.mark.parametrize("line", [0, 1])
def test_an_edited_line_breaks_the_chain(tmp_path: Path, time: FakeTime, line: int) -> None:
    path = tmp_path / "ledger.jsonl"
    clock = Clock(60.0, Ledger(path), now=time)
    for name in ("set-up", "train", "pack"):
        with clock.phase(name):
            time.pass_(1)
    lines = path.read_text().splitlines()
    entry = json.loads(lines[line])
    entry["on_budget"] = True
    lines[line] = json.dumps(entry, sort_keys=True)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SubmissionError, match="chain is broken"):
        read_ledger(path)


def test_a_missing_line_breaks_the_chain(tmp_path: Path, time: FakeTime) -> None:
    path = tmp_path / "ledger.jsonl"
    clock = Clock(60.0, Ledger(path), now=time)
    for name in ("set-up", "train", "pack"):
        with clock.phase(name):
            time.pass_(1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(SubmissionError, match="line 2"):
        read_ledger(path)


@pytest.mark.parametrize(
    "text",
    ["{}", "nonsense", '{"phase": 1}', "[]", "null", f'{{"phase": 1, "start_s": {"9" * 400}}}'],
)
def test_a_foreign_line_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(SubmissionError, match="line 1"):
        read_ledger(path)


def test_time_that_runs_backwards_is_refused(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(60.0, Ledger(tmp_path / "ledger.jsonl"), now=time)
    with clock.phase("train", on_budget=True):
        time.pass_(-5)
    with pytest.raises(SubmissionError, match="runs from"):
        read_ledger(tmp_path / "ledger.jsonl")


def test_an_unwritable_ledger_says_so(tmp_path: Path, time: FakeTime) -> None:
    clock = Clock(60.0, Ledger(tmp_path / "missing" / "ledger.jsonl"), now=time)
    with pytest.raises(OutputError, match="ledger"), clock.phase("train"):
        pass
