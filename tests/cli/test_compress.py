"""Protects `compress` and `decompress`: a file comes back whole, or a line says why not."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speedrun.config import EvalConfig
from speedrun.data.dataset import open_dataset
from speedrun.verify import compression, sandbox
from speedrun.verify.compression import Model
from speedrun.verify.walls import Walls

TEXT = "for x in range(9):\n    return self.None\n    the words naïve\n\tdef ())\n" * 2


@pytest.fixture(name="submission")
def submission_fixture(runs: Path, contest: Any) -> tuple[object, ...]:
    """The options that name a real submission and the data of its tokenizer."""
    folder = min(path for path in runs.iterdir() if path.is_dir())
    return ("--model", folder / "submission", "--data", contest.data)


class Parrot:
    """Knows `TEXT` by heart."""

    kind = "fixed"

    def __init__(self, tokens: list[int], vocab_size: int) -> None:
        self.tokens, self.vocab_size = tokens, vocab_size

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(tokens), self.vocab_size), np.float32)
        if tokens.shape[1] <= len(self.tokens):
            logits[:, self.tokens[tokens.shape[1] - 1]] = 8.0
        return logits

    def observe(self, tokens: np.ndarray) -> None:
        raise AssertionError("a fixed predictor is never told")


@pytest.fixture(name="model")
def model_fixture(contest: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The same options where no process is needed: the submission is a parrot."""
    tokenizer = open_dataset(contest.data).tokenizer()
    parrot = Parrot(tokenizer.encode(TEXT), tokenizer.vocab_size)

    def open_model(folder: Path, tokenizer: Any, *, allow_unsandboxed: bool) -> Model:
        return Model(
            start=lambda: contextlib.nullcontext(parrot),
            tokenizer=tokenizer,
            evaluation=EvalConfig(context=1_000, stride=1_000),
            sha256=folder.name.encode().hex().ljust(64, "0"),
        )

    monkeypatch.setattr(compression, "open_model", open_model)
    return ("--model", "parrot", "--data", contest.data)


def test_a_file_comes_back_from_a_real_submission(call, submission, tmp_path):
    text, packed = tmp_path / "notes.txt", tmp_path / "notes.txt.lm"
    text.write_text(TEXT[: len(TEXT) // 2])
    made = call("compress", text, *submission, "--json")
    assert made.code == 0 and made.err == ""
    facts = json.loads(made.out)
    assert facts["is_checked"] is True and packed.stat().st_size == facts["bytes_out"]
    # It was trained for a second: enough where nothing repeats that zstd could refer to.
    assert facts["tokens"] > 0


def test_a_file_comes_back(call, model, tmp_path):
    text, packed = tmp_path / "notes.txt", tmp_path / "notes.txt.lm"
    text.write_text(TEXT)
    made = call("compress", text, *model)
    assert made.code == 0 and made.err == ""
    size = len(TEXT.encode())
    assert f"{packed}: {packed.stat().st_size:,} of {size:,} bytes" in made.out
    assert "zstd -22 needs" in made.out and packed.stat().st_size < 30
    text.unlink()
    found = call("decompress", packed, *model)
    assert (found.code, found.err) == (0, "")
    assert found.out == f"{text}: {size:,} bytes, as they were\n"
    assert text.read_text() == TEXT


def test_json_says_what_the_bytes_are_for(call, model, tmp_path):
    text, packed = tmp_path / "t", tmp_path / "packed"
    text.write_text(TEXT)
    words = ("--out", packed, "--streams", 2, "--no-check", "--json")
    made = json.loads(call("compress", text, *model, *words).out)
    assert made["bytes_in"] == len(TEXT.encode()) and made["bytes_out"] == packed.stat().st_size
    assert made["is_checked"] is False
    assert made["bits_per_byte"] == pytest.approx(8 * made["bytes_out"] / made["bytes_in"])
    words = ("--out", tmp_path / "back", "--json")
    assert json.loads(call("decompress", packed, *model, *words).out)["bytes_out"] == len(
        TEXT.encode()
    )
    assert (tmp_path / "back").read_text() == TEXT


def test_an_empty_file_comes_back(call, model, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert "no text for this model" in call("compress", empty, *model).out
    empty.unlink()
    assert call("decompress", tmp_path / "empty.lm", *model).code == 0
    assert empty.read_bytes() == b""


def test_nothing_is_written_over_without_being_named(call, model, tmp_path):
    text = tmp_path / "t"
    text.write_text("x")
    (tmp_path / "t.lm").write_text("precious")
    found = call("compress", text, *model)
    assert found.code == 2 and "t.lm exists; name it with --out" in found.error()
    assert (tmp_path / "t.lm").read_text() == "precious"
    assert call("compress", text, *model, "-o", tmp_path / "t.lm").code == 0
    found = call("decompress", tmp_path / "t.lm", *model)
    assert found.code == 2 and "/t exists" in found.error()


def test_a_file_that_does_not_come_back_is_not_written(call, model, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "decompress", lambda *args, **options: b"something else")
    text = tmp_path / "t"
    text.write_text("x")
    found = call("compress", text, *model)
    assert found.code == 2 and "does not come back; nothing was written" in found.error()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("compress missing", "missing: cannot be read"),
        ("decompress missing.lm", "missing.lm: cannot be read"),
        ("decompress text", "does not end in .lm; name the file to write with --out"),
        ("decompress text -o x", "not a compressed file of ours"),
        ("compress text --streams 0", "--streams"),
        ("compress text --model .", "model.srz"),
        ("compress text --model nowhere", "nowhere"),
    ],
)
def test_a_wrong_word_is_one_line(call, submission, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(TEXT)
    found = call(*words.split(), *(submission[2:] if "--model" in words else submission))
    assert found.code == 2 and found.out == "" and said in found.error()
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_another_submission_is_refused(call, model, tmp_path):
    (tmp_path / "t").write_text(TEXT)
    assert call("compress", tmp_path / "t", *model).code == 0
    words = ("--model", "crow", *model[2:], "-o", tmp_path / "back")
    found = call("decompress", tmp_path / "t.lm", *words)
    assert found.code == 2 and "made with model 70617272..., this one is 63726f77" in found.error()
    assert not (tmp_path / "back").exists()


def test_a_submission_without_a_sandbox_has_to_be_allowed(call, submission, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "best_walls", lambda: (Walls.NONE, "bubblewrap is not here"))
    text = tmp_path / "t"
    text.write_text(TEXT[: len(TEXT) // 2])
    found = call("compress", text, *submission)
    assert found.code == 2 and "bubblewrap is not here; to run it" in found.error()
    assert list(tmp_path.iterdir()) == [text]
    words = ("--allow-unsandboxed", "--no-check")
    assert call("compress", text, *submission, *words).code == 0
