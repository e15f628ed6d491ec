"""Protects the protocol between a submission and the judge, as bytes and as behaviour."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from speedrun.errors import PredictorError
from speedrun.predict import ModelPredictor, frame, serve


class Echo:
    """Logits are the token itself in every column; remembers what it observed."""

    vocab_size, kind = 3, "adaptive"

    def __init__(self) -> None:
        self.observed: list[int] = []

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return np.repeat(tokens[asked][:, None], 3, axis=1)  # int64: serve converts

    def observe(self, tokens: np.ndarray) -> None:
        self.observed += tokens.tolist()


def numbers(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def headers(raw: bytes) -> list[object]:
    found = []
    while raw:
        assert raw[:4] == b"SRP1"
        size = int.from_bytes(raw[4:8], "little")
        found.append(json.loads(raw[12 : 12 + size]))
        raw = raw[12 + size :]
    return found


def test_a_frame_is_these_bytes() -> None:
    assert frame({"do": "x"}, b"ab") == b'SRP1\x0b\0\0\0\x02\0\0\0{"do": "x"}ab'


def test_serve_answers_every_request_in_turn(tmp_path: Path) -> None:
    store, predictor, replies = tmp_path / "logits", Echo(), io.BytesIO()
    store.touch()
    requests = (
        frame({"do": "open", "logits": str(store)})
        + frame({"do": "predict", "shape": [2, 2]}, numbers(5, 6, 7, 8, 0, 1))
        + frame({"do": "observe"}, numbers(1, 2))
    )
    serve(predictor, (io.BytesIO(requests), replies))
    assert headers(replies.getvalue()) == [
        {"protocol": 1, "vocab_size": 3, "kind": "adaptive"},
        {},
        {"shape": [3, 3]},
        {},
    ]
    assert np.fromfile(store, "<f4").tolist() == [5, 5, 5, 6, 6, 6, 8, 8, 8]
    assert predictor.observed == [1, 2]


def test_serve_refuses_a_request_it_does_not_know() -> None:
    with pytest.raises(PredictorError, match="'train'"):
        serve(Echo(), (io.BytesIO(frame({"do": "train"})), io.BytesIO()))


def test_prints_of_a_served_process_stay_off_the_protocol() -> None:
    program = (
        "import os, sys; from speedrun.predict import take_stdio\n"
        "print('early')\n"
        "_, replies = take_stdio()\n"
        "print('late', flush=True); os.write(1, b'raw'); assert sys.stdin.read() == ''\n"
        "replies.write(b'reply'); replies.flush()"
    )
    done = subprocess.run([sys.executable, "-c", program], input=b"", capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"early\nreply")
    assert done.stderr == b"late\nraw"


class Table(torch.nn.Module):
    """Logits are a row per asked token."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(5, 5)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, ids: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.rows(ids[asked]))  # type: ignore[no-any-return]


def test_model_predictor_gives_the_asked_rows_in_evaluation_mode() -> None:
    model = Table().train()
    tokens = np.array([[0, 1, 2], [2, 3, 4]])
    logits = ModelPredictor(model, 5).predict(tokens, np.array([1, 2]))
    assert torch.equal(logits, model.rows.weight[[1, 2, 4]])
    assert model.training
