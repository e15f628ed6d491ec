"""Protects what a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from speedrun.cli.screen import open_screen


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(name="terminal")
def terminal_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], _Terminal]:
    """Call it in the test: before that, stdout is not yet what the test will see."""

    def replace() -> _Terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        screen = _Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        return screen

    return replace


def _tell(as_json: bool = False) -> None:
    with open_screen(60.0, as_json=as_json) as screen:
        screen.say("step:1/9 train_loss:5.0000 train_time:9ms step_avg:9.00ms")
        screen.say("step:2/9 val_loss:4.0000 val_bpb:3.0000 train_time:9ms step_avg:9.00ms")
        screen.on_step(0.2, 12.34, 2.5)
        if screen.on_scored:
            screen.on_scored("sliding windows", 62_021_632, 62_021_632)


def test_the_bar_shows_time_and_loss_and_fits(terminal):
    screen = terminal()
    _tell()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()
    (training,) = {line.strip() for line in lines if "12.3" in line}
    assert training.startswith("training ") and training.endswith("12.3 of 60 s  loss 2.5000")
    assert any("62,021,632 of 62,021,632 tokens" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_bar_replaces_the_lines_of_steps_but_not_of_looks(terminal):
    screen = terminal()
    _tell()
    assert "train_loss" not in screen.getvalue() and "val_bpb:3.0000" in screen.getvalue()


def test_elsewhere_every_line_is_plain(capsys):
    _tell()
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()] == [
        "train_loss:5.0000",
        "val_loss:4.0000",
    ]
    assert err == ""


def test_json_has_stdout_for_itself_on_a_terminal_too(terminal, capsys):
    screen = terminal()
    _tell(as_json=True)
    assert screen.getvalue() == "" and "train_loss" in capsys.readouterr().err
