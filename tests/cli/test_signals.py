"""Protects the two ways of stopping: noted for the loop, or unwinding the program."""

from __future__ import annotations

import os
import signal

import pytest

from speedrun.cli.signals import Noted, RunInterruptedError, exit_cleanly


@pytest.fixture(autouse=True)
def _handlers():
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_once_and_acts_as_before_the_second_time(number, capsys):
    exit_cleanly()
    with Noted() as signals:
        assert signals.number == 0
        os.kill(os.getpid(), number)
        assert signals.number == number
        with pytest.raises(SystemExit) as left:
            os.kill(os.getpid(), number)
    assert left.value.code == 128 + number
    assert capsys.readouterr().err in ("interrupted\n", "terminated\n")


def test_handlers_are_back_after_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with Noted():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_exit_code_is_that_of_the_shell():
    assert RunInterruptedError("stopped", signal.SIGINT).exit_code == 130
    assert RunInterruptedError("stopped", signal.SIGTERM).exit_code == 143
