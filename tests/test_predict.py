"""Protects the protocol between a submission and the judge, as bytes and as behaviour."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import speedrun.predict
from speedrun.errors import PredictorError
from speedrun.predict import ModelPredictor, call_driver, frame, serve


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


class Tensors:
    """Answers with tensors of a kind that files do not take as they are."""

    vocab_size, kind = 2, "fixed"

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> torch.Tensor:
        column = torch.from_numpy(tokens.reshape(-1)).bfloat16()
        return torch.stack([column, -column])[
            :, : tokens.shape[1]
        ].T  # neither float32 nor in order

    def observe(self, tokens: np.ndarray) -> None:
        raise AssertionError("a fixed predictor is never told")


def test_tensors_become_rows_of_float32_and_the_file_grows_with_them(tmp_path: Path) -> None:
    store, replies = tmp_path / "logits", io.BytesIO()
    store.touch()
    asked = [frame({"do": "open", "logits": str(store), "of the future": 1})]
    for values in ([1], [1, 2, 3], [4, 5]):
        shape = [1, len(values)]
        asked.append(frame({"do": "predict", "shape": shape}, numbers(*values, 0)))
    serve(Tensors(), (io.BytesIO(b"".join(asked)), replies))
    assert headers(replies.getvalue())[2:] == [{"shape": [n, 2]} for n in (1, 3, 2)]
    assert np.fromfile(store, "<f4").tolist() == [4, -4, 5, -5, 3, -3]


def test_a_predictor_that_cannot_map_the_device_says_why_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cuMemMap gives error 1")

    monkeypatch.setattr(speedrun.predict, "_map_inherited", refuse)
    store, replies = tmp_path / "logits", io.BytesIO()
    store.touch()
    requests = frame({"do": "open", "logits": str(store), "device": [3, 4096]})
    requests += frame({"do": "predict", "shape": [1, 1]}, numbers(7, 0))
    serve(Tensors(), (io.BytesIO(requests), replies))
    assert headers(replies.getvalue())[1:] == [
        {"device": "cuMemMap gives error 1"},
        {"shape": [1, 2]},
    ]
    assert np.fromfile(store, "<f4").tolist() == [7, -7]


def test_a_driver_that_is_not_there_or_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(speedrun.predict.ctypes, "CDLL", missing)
    with pytest.raises(OSError, match=r"libcuda\.so\.1"):
        call_driver("cuInit", 0)
    refusing = SimpleNamespace(cuInit=lambda flags: 100)
    monkeypatch.setattr(speedrun.predict.ctypes, "CDLL", lambda name: refusing)
    with pytest.raises(OSError, match="cuInit gives error 100"):
        call_driver("cuInit", 0)


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
