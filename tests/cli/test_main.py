"""Protects the command line itself: help, one-line errors, exit codes, JSON that stands alone."""

from __future__ import annotations

import json

import pytest

COMMANDS = (
    *(
        "",
        "run",
        "pack",
        "verify",
        "submit",
        "judge",
        "compress",
        "decompress",
        "records",
        "data",
        "recipes",
    ),
    "tracks",
    *("records runs", "records list", "records add", "records compare", "records render"),
    *("records import", "records withdraw"),
    *(
        "data list",
        "data fetch",
        "data check",
        "data prepare",
        "recipes list",
        "recipes show",
        "recipes diff",
    ),
    *("tracks list", "tracks show", "tracks rules"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_whole_and_fits_a_terminal(call, command):
    found = call(*command.split(), "--help")
    assert found.code == 0 and found.err == ""
    usage, *rest = found.out.replace("SUBMISSION... ", "").splitlines()
    usage = usage.replace("{RUN}...", "").replace("{FOLDER|QUEUE}...", "")
    assert usage.startswith(f"Usage: speedrun {command}".strip())
    assert "..." not in "".join(rest)
    assert max(map(len, found.out.splitlines())) <= 80
    if command not in ("", "records", "data", "recipes", "tracks"):
        assert f"Example: speedrun {command}" in found.out and "--json" in found.out


def test_every_exit_code_is_documented(call):
    text = " ".join(call("--help").out.split())
    for said in ("0 passed", "1 a rule is broken", "2 could not be", "130 interrupted", "143"):
        assert said in text


@pytest.mark.parametrize("words", [(), ("records",), ("data",), ("recipes",), ("tracks",)])
def test_a_command_without_a_word_shows_its_help(call, words):
    found = call(*words)
    assert found.code == 2 and "Commands:" in found.err and found.out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rnu", "No such command 'rnu'"),
        ("run --bugdet 3s", "--bugdet"),
        ("run --seeds 0", "--seeds"),
        ("run --seed x", "--seed"),
        ("verify", "Missing argument 'SUBMISSION'"),
        ("verify x --level deep", "deep"),
        ("data prepare x.jsonl", "--tokenizer"),
        ("run --budget 3parsecs", "'3parsecs' is not a duration"),
        ("run --recipe pocket/defautl", "did you mean 'pocket/default'"),
        ("run --track pockt", "did you mean 'pocket'"),
        ("run --set optim.muonlr=3", "unknown key 'optim.muonlr'"),
        ("run --set optim", "expected section.key=value"),
        ("run --set data.sequence_length=abc", "data.sequence_length = 'abc'"),
        ("run --set model.width=33", "model.width = 33 is impossible"),
        ("run --resume nowhere", "nowhere is no run folder"),
        ("run --resume nowhere --seed 3", "own recipe, track, budget and seed"),
        ("pack nowhere", "nowhere is no run folder"),
        ("pack nowhere --set model.width=64", "only quant.* and evaluation.* can change"),
        ("verify nowhere", "nowhere is not a folder"),
        ("data check nowhere", "no corpus and no folder is called 'nowhere'"),
        ("records compare a b", "'a' is no folder"),
        ("records render --readme nowhere.md", "nowhere.md: cannot be read"),
        ("tracks show nowhere.toml", "'nowhere.toml' does not exist"),
        ("recipes show golf", "unknown recipe 'golf'"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(call, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    track = [] if "--track" in words or "--resume" in words else ["--track", "pocket"]
    found = call(*words.split(), *(track if words.startswith("run") else []))
    assert found.code == 2 and found.out == ""
    assert said in found.error()
    assert list(tmp_path.iterdir()) == []


def test_debug_adds_the_traceback(call):
    found = call("--debug", "tracks", "show", "pockt")
    assert found.code == 2 and "Traceback" in found.err
    assert found.err.splitlines()[-1].startswith("error: unknown track 'pockt'")


@pytest.mark.parametrize(
    "words",
    [
        "tracks list",
        "tracks show pocket",
        "recipes list",
        "recipes show pocket/default",
        "recipes diff golf/baseline golf/pr649",
        "data list",
        "records list --root nowhere",
        "records runs --out nowhere",
        "run --track pocket --dry-run",
    ],
)
def test_json_parses_and_text_is_not_empty(call, words):
    found = call(*words.split(), "--json")
    assert found.code == 0 and found.err == ""
    json.loads(found.out)
    assert call(*words.split()).out.strip()


def test_json_of_the_commands_that_work_on_data(call, contest, tmp_path):
    checked = call("data", "check", contest.data, "--json")
    assert checked.code == 0 and json.loads(checked.out)["status"] == "PASS"
    seen = call("data", "inspect", contest.data, "--documents", 1, "--json")
    assert json.loads(seen.out)["lengths"]["documents"] == 8
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"id": i, "text": f"def {i}(): 1\n"}) + "\n" for i in "abc")
    )
    words = ("--tokenizer", contest.data / "tokenizer.model", "--out", tmp_path / "D")
    made = call("data", "prepare", texts, *words, "--validation-documents", 1, "--json")
    assert json.loads(made.out)["validation_bytes"] == len("def a(): 1\n")


def test_an_error_of_the_operating_system_is_one_line(call, tmp_path):
    (tmp_path / "folder.toml").mkdir()
    assert call("verify", tmp_path, "--track", "pocket", "--level", "static").code == 1
    found = call("recipes", "show", tmp_path / "folder.toml")
    assert found.code == 2 and "folder.toml" in found.error()
