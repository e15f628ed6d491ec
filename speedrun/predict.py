"""The predictor protocol: what a submission answers, and the loop that serves it to the judge.

A predictor can do two things, `predict` and `observe`. In the submission's own process `serve`
speaks to the judge (`verify.remote`) over stdin and stdout, one reply to each request.

frame      b"SRP1", header and payload sizes (2 uint32), JSON header, payload; little-endian
hello      {"protocol": 1, "vocab_size": V, "kind": "fixed" | "adaptive"}: first, by the predictor
open       {"do": "open", "logits": path}: the file, on shared memory, that takes the logits
predict    {"do": "predict", "shape": [B, T]} + int64 tokens (B, T), then int64 scored_from (B,);
           the reply {"shape": [n, V]} follows once n * V float32 lie at the start of that file
observe    {"do": "observe"} + int64 tokens; the reply is {}
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

import numpy as np

from speedrun.errors import PredictorError

if TYPE_CHECKING:
    import torch

PROTOCOL = 1
MAGIC = b"SRP1"
FRAME = struct.Struct("<4sII")


class Predictor(Protocol):
    """A next-token model, as the judge sees it."""

    @property
    def vocab_size(self) -> int:
        """Size of the alphabet: logits have so many columns."""

    @property
    def kind(self) -> Literal["fixed", "adaptive"]:
        """An adaptive predictor learns in `observe`; a fixed one is never told."""

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray | torch.Tensor:
        """Logits of the token after each asked position, from the tokens up to that position.

        Shapes
            tokens       (B, T)  int64, windows of one stream in order
            scored_from  (B,)    int64; positions scored_from[b] .. T - 1 of row b are asked
            result       (n, vocab)  float32, row by row; n = sum of T - scored_from
        """

    def observe(self, tokens: np.ndarray) -> None:
        """Learn from tokens (n,) that the judge has scored; each comes once, in order."""


class ModelPredictor:
    """A `model.GPT`, or what else maps ids and asked (B, T) to logits (n, V)."""

    kind: Literal["fixed"] = "fixed"

    def __init__(
        self, model: torch.nn.Module, vocab_size: int, *, autocast: torch.dtype | None = None
    ) -> None:
        self.model, self.vocab_size, self.autocast = model, vocab_size, autocast

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> torch.Tensor:
        """See `Predictor.predict`; the result stays on the model's device."""
        import torch

        device = next(self.model.parameters()).device
        was_training = self.model.training
        self.model.eval()
        mixed = torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), mixed:
            asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
            places = (torch.from_numpy(part).to(device) for part in (tokens, asked))
            logits: torch.Tensor = self.model(*places).float()
        self.model.train(was_training)
        return logits

    def observe(self, tokens: np.ndarray) -> None:
        """A fixed predictor learns nothing."""


def frame(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """Bytes of one message."""
    text = json.dumps(header).encode()
    return FRAME.pack(MAGIC, len(text), len(payload)) + text + payload


def take_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Claim stdin and stdout for the protocol; whatever prints from now on goes to stderr.

    Call it before anything is loaded: one stray line would be read as a broken message.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (pathlib is no shorter in the bundle)
        os.dup2(nothing.fileno(), 0)
    return requests, replies


def serve(predictor: Predictor, connection: tuple[BinaryIO, BinaryIO]) -> None:
    """Answer the judge until it closes the connection.

    Raises
        PredictorError: a request that this protocol does not know.
    """
    requests, replies = connection

    def reply(header: dict[str, Any]) -> None:
        replies.write(frame(header))
        replies.flush()

    reply({"protocol": PROTOCOL, "vocab_size": predictor.vocab_size, "kind": predictor.kind})
    store = -1
    while len(head := requests.read(FRAME.size)) == FRAME.size:
        _, header_bytes, payload_bytes = FRAME.unpack(head)
        request = json.loads(requests.read(header_bytes))
        numbers = np.frombuffer(requests.read(payload_bytes), "<i8")
        if request["do"] == "open":
            store = os.open(request["logits"], os.O_RDWR)
            reply({})
        elif request["do"] == "predict":
            batch, length = request["shape"]
            tokens = numbers[: batch * length].reshape(batch, length).copy()
            logits: Any = predictor.predict(tokens, numbers[batch * length :].copy())
            if not isinstance(logits, np.ndarray):
                logits = logits.cpu().numpy()
            left = np.ascontiguousarray(logits, "<f4").reshape(-1).view(np.uint8).data
            os.lseek(store, 0, os.SEEK_SET)
            while left:  # the kernel writes at most 2 GiB at a time
                left = left[os.write(store, left) :]
            reply({"shape": list(logits.shape)})
        elif request["do"] == "observe":
            predictor.observe(numbers.copy())
            reply({})
        else:
            raise PredictorError(f"unknown request {request['do']!r}; this is protocol {PROTOCOL}")
