"""The predictor protocol: what a submission answers, and the loop that serves it to the judge.

A predictor can do two things, `predict` and `observe`. In the submission's own process `serve`
speaks to the judge (`verify.remote`); a predictor in another language follows what stands here.

**Start.** The judge runs `python train_gpt.py predict model.srz` in a folder that holds these two
files, read-only. Messages go over stdin and stdout, and stdout carries nothing else: claim it
before anything is loaded (`take_stdio`). stderr is free; the last line of it is shown when a
predictor dies. There is no network; /tmp is empty, private and gone afterwards.

**Messages.** All numbers are little-endian. One message is

    offset  size
    0       4     the letters SRP1
    4       4     uint32, H: bytes of the header
    8       4     uint32, P: bytes of the payload
    12      H     header, a JSON object in UTF-8
    12 + H  P     payload, int64 numbers one after the other

The predictor speaks first: its hello. Then it answers each request with one message, in turn, until
stdin ends. Replies have at most 1,024 bytes of header and no payload. Keys that one does not know
are to be ignored: that is how a version of the protocol can grow.

    hello    {"protocol": 1, "vocab_size": V, "kind": "fixed"} or "adaptive"; V is 2 to 65,536

    open     request  {"do": "open", "logits": PATH}, once, before all others
             reply    {}
             PATH is a file in shared memory, empty at first. Open it for reading and writing, keep
             it open, make it as long as you need (4 GB at most), map it or write to it. It cannot
             be made shorter.

    predict  request  {"do": "predict", "shape": [B, T]}
                      payload: B * T tokens, row by row, then B numbers scored_from
             reply    {"shape": [n, V]}
             Rows are windows of one stream. Asked are the positions scored_from[b] to T - 1 of each
             row b, n in all; for each, the logits of the token that follows it, from nothing but
             the tokens up to it. Before the reply is sent, n * V float32 lie at the start of the
             file: positions in order, row after row, V logits each. They need not be normalised,
             but all must be finite; the judge applies the softmax.

    observe  request  {"do": "observe"}, payload: tokens that the judge has scored
             reply    {}
             Sent to adaptive predictors only: each token once, in order, after its score is fixed.

**GPUs.** Where the judge has a CUDA device, `open` also brings "device": [FD, BYTES]: an inherited
descriptor of a block of its memory, made by cuMemExportToShareableHandle. A predictor may import
and map it (`map_memory` shows how) and reply {"device": true}. From then on it may put its logits
there instead of into the file, whenever they fit, and says so with "device": true in the reply of
`predict`, which it sends after its kernels have finished. A reply of {"device": "why not"} goes
into the verdict; ignoring the key costs only time.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from types import SimpleNamespace
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
        if was_training := self.model.training:
            self.model.eval()
        mixed = torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)
        with torch.inference_mode(), mixed:
            asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
            places = (torch.from_numpy(part).to(device) for part in (tokens, asked))
            logits: torch.Tensor = self.model(*places).float()
        if was_training:
            self.model.train()
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


def map_memory(handle: Any, num_bytes: int, device: int) -> int:
    """Map device memory that a CUDA driver's handle stands for, and give its address.

    Raises
        OSError: there is no such driver, or it refuses.
    """
    size, zero, address = ctypes.c_size_t(num_bytes), ctypes.c_uint64(), ctypes.c_uint64()
    call_driver("cuMemAddressReserve", ctypes.byref(address), size, zero, zero, zero)
    call_driver("cuMemMap", address, size, zero, handle, zero)
    # CUmemAccessDesc: a device (1), which, reading and writing (3).
    access = (ctypes.c_int * 3)(1, device, 3)
    call_driver("cuMemSetAccess", address, size, access, ctypes.c_size_t(1))
    return address.value


def call_driver(name: str, *arguments: Any) -> None:
    """Call the CUDA driver.

    Raises
        OSError: it is not there, or answers with an error.
    """
    if code := getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments):
        raise OSError(f"{name} gives error {code}")


def device_tensor(address: int, count: int) -> torch.Tensor:
    """Mapped device memory as float32."""
    import torch

    values = {"shape": (count,), "typestr": "<f4", "data": (address, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=values), device="cuda")


def _map_inherited(descriptor: int, num_bytes: int) -> torch.Tensor:
    import torch

    torch.cuda.synchronize()  # makes the context that the driver works in
    handle, found = ctypes.c_uint64(), ctypes.c_void_p(descriptor)
    call_driver("cuMemImportFromShareableHandle", ctypes.byref(handle), found, 1)
    address = map_memory(handle, num_bytes, torch.cuda.current_device())
    return device_tensor(address, num_bytes // 4)


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
    path, store, block = "", np.empty(0, "<f4"), None
    while len(head := requests.read(FRAME.size)) == FRAME.size:
        _, header_bytes, payload_bytes = FRAME.unpack(head)
        request = json.loads(requests.read(header_bytes))
        numbers = np.frombuffer(requests.read(payload_bytes), "<i8")
        answer: dict[str, Any] = {}
        if request["do"] == "open":
            path = request["logits"]
            if "device" in request:
                answer = {"device": True}
                try:
                    block = _map_inherited(*request["device"])
                # No torch, no CUDA in it, no driver, or one that refuses.
                except (
                    ImportError,
                    AssertionError,
                    AttributeError,
                    OSError,
                    RuntimeError,
                ) as error:
                    answer = {"device": str(error)[:200]}
        elif request["do"] == "predict":
            batch, length = request["shape"]
            tokens = numbers[: batch * length].reshape(batch, length).copy()
            logits: Any = predictor.predict(tokens, numbers[batch * length :].copy())
            answer, flat = {"shape": list(logits.shape)}, logits.reshape(-1)
            if block is not None and getattr(flat, "is_cuda", False) and len(flat) <= len(block):
                block[: len(flat)] = flat
                block[:1].cpu()  # waits for the kernels
                answer["device"] = True
            else:
                if not isinstance(flat, np.ndarray):
                    flat = flat.float().cpu().numpy()
                if len(store) < len(flat):  # a longer map makes the file longer
                    store = np.memmap(path, "<f4", "r+", shape=len(flat))
                store[: len(flat)] = flat
        elif request["do"] == "observe":
            predictor.observe(numbers.copy())
        else:
            raise PredictorError(f"unknown request {request['do']!r}; this is protocol {PROTOCOL}")
        reply(answer)
