"""The judge's end of the predictor protocol: a predictor that lives in another process.

Nothing that arrives is trusted: sizes are bounded before they are read, waiting has an end, and
logits are copied before they are looked at. `predict` documents the messages.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speedrun.errors import CoverageError, PredictorError, PredictorLostError
from speedrun.predict import FRAME, MAGIC, PROTOCOL, frame
from speedrun.verify.device_memory import DeviceBlock
from speedrun.verify.sandbox import Cell
from speedrun.verify.walls import FIRST_INHERITED

if TYPE_CHECKING:
    import torch

_MAX_HEADER = 1_024
_KEPT_STDERR = 4_000
_MAX_STDERR = 1 << 26
_DEVICE_BYTES = 1 << 27
"""What `bpb` asks for in one call at most, unless one window alone needs more."""


class RemotePredictor:
    """`predict.Predictor` in a cell. The `with` block starts the process and ends it."""

    vocab_size: int
    kind: Literal["fixed", "adaptive"]

    def __init__(self, cell: Cell, arguments: list[str], *, budget_s: float) -> None:
        """Prepare to run `python ARGUMENTS` in the cell.

        Args:
            cell: Where it runs.
            arguments: Usually `["train_gpt.py", "predict", "model.srz"]`.
            budget_s: Seconds that may be spent waiting for it, start included, before it is ended.
        """
        self.budget_s = budget_s
        self.waited_s = 0.0
        """Seconds spent waiting for the process so far."""
        self.start_s = 0.0
        """Those of them that passed until it was ready."""
        self.transport = "shared memory"
        """How logits travel; on machines with a GPU also why not through its memory."""
        self._cell, self._arguments = cell, arguments
        self._received, self._stderr, self._printed_bytes = b"", b"", 0
        self._buffer = np.empty(0, np.float32)
        self._block: DeviceBlock | None = None
        self._launched = False

    def __enter__(self) -> RemotePredictor:
        """Start the process, unless `launch` did, and wait for its hello.

        Raises
            PredictorLostError: it ended or ran out of time.
            PredictorError: it does not speak the protocol.
        """
        if not self._launched:
            self.launch()
        try:
            self._greet(self._exchange(b""))
            self._open()
        except BaseException:
            self.end()
            raise
        self.start_s = self.waited_s
        return self

    def launch(self) -> None:
        """Start the process, which gets ready by itself; `end` it if it is never entered."""
        self._open_block()
        inherited = [self._block.descriptor] if self._block else []
        try:
            self._process = self._cell.start(self._arguments, descriptors=inherited)
        except BaseException:
            self._close_block()
            raise
        self._launched, self._selector = True, selectors.DefaultSelector()
        try:
            popen = self._process.popen
            for stream in (popen.stdin, popen.stdout, popen.stderr):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                if stream is not popen.stdin:
                    self._selector.register(stream, selectors.EVENT_READ)
        except BaseException:
            self.end()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def _greet(self, hello: dict[str, Any]) -> None:
        vocab, kind = hello.get("vocab_size"), hello.get("kind")
        if hello.get("protocol") != PROTOCOL:
            raise PredictorError(
                f"the predictor speaks protocol {hello.get('protocol')!r}, the judge {PROTOCOL}"
            )
        if type(vocab) is not int or not 2 <= vocab <= 65_536 or kind not in ("fixed", "adaptive"):
            raise PredictorError(
                f"the predictor introduces itself with vocab_size {vocab!r} and kind {kind!r}; "
                "expected 2 to 65,536 and 'fixed' or 'adaptive'"
            )
        self.vocab_size, self.kind = vocab, kind

    def _open_block(self) -> None:
        """Where the cell has a GPU, try to have its memory for the logits."""
        if not self._cell.limits.devices:
            return
        try:
            self._block = DeviceBlock(_DEVICE_BYTES)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            self.transport += f", not the GPU's: {error}"

    def _open(self) -> None:
        """Tell the process where its logits go."""
        request: dict[str, Any] = {"do": "open", "logits": self._process.store.path}
        if self._block is not None:
            request["device"] = [FIRST_INHERITED + 1, self._block.num_bytes]
        reply = self._exchange(frame(request))
        if self._block is None:
            return
        if reply.get("device") is True:
            self.transport = "GPU memory"
            return
        self._close_block()
        reason = _printable(str(reply.get("device", "the predictor does not know it")).encode())
        self.transport += f", not the GPU's: {reason}"

    def _close_block(self) -> None:
        if self._block is not None:
            self._block.close()
        self._block = None

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray | torch.Tensor:
        """See `Predictor.predict`. An array is overwritten by the next call.

        Raises
            PredictorError: no answer. `bpb` checks the values.
            CoverageError: logits of another shape, or fewer than announced.
        """
        payload = tokens.astype("<i8").tobytes() + scored_from.astype("<i8").tobytes()
        reply = self._exchange(frame({"do": "predict", "shape": list(tokens.shape)}, payload))
        expected = [int((tokens.shape[1] - scored_from).sum()), self.vocab_size]
        if reply.get("shape") != expected:
            raise CoverageError(f"logits have shape {reply.get('shape')!r}, expected {expected}")
        count = expected[0] * expected[1]
        # Copied first: the process may go on writing. What is normalised and what is looked up must
        # be the same numbers.
        if reply.get("device") is True:
            if self._block is None or 4 * count > self._block.num_bytes:
                raise PredictorError("the predictor speaks of GPU memory that it was not given")
            return self._block.copy(count).reshape(expected)
        if self._buffer.size < count:
            self._buffer = np.empty(count, np.float32)
        logits = self._buffer[:count]
        self._process.store.read_into(logits)
        return logits.reshape(expected)

    def observe(self, tokens: np.ndarray) -> None:
        """See `Predictor.observe`.

        Raises
            PredictorError: no answer.
        """
        self._exchange(frame({"do": "observe"}, tokens.astype("<i8").tobytes()))

    def end(self) -> None:
        """End the process and all its children, if it was started."""
        if not self._launched:
            return
        self._launched = False
        self._selector.close()
        self._process.end()
        self._close_block()

    def _exchange(self, message: bytes) -> dict[str, Any]:
        """Send a message and wait for one reply, reading what the process prints meanwhile."""
        if self._received:
            raise PredictorError("the predictor answered without being asked")
        process, left, began = self._process.popen, memoryview(message), time.monotonic()
        assert process.stdin is not None and process.stdout is not None
        if left:
            self._selector.register(process.stdin, selectors.EVENT_WRITE)
        try:
            while (reply := self._take_frame()) is None:
                remaining_s = self.budget_s - self.waited_s - (time.monotonic() - began)
                if remaining_s <= 0:
                    raise PredictorLostError(
                        f"the predictor used up its {self.budget_s:g} s and was ended"
                        + self._last_words()
                    )
                for key, _ in self._selector.select(min(remaining_s, 60.0)):
                    if key.fileobj is process.stdin:
                        with suppress(BrokenPipeError):
                            left = left[os.write(key.fd, left) :]
                            if left:
                                continue
                        self._selector.unregister(process.stdin)
                    elif not (data := os.read(key.fd, 1 << 16)):
                        self._selector.unregister(key.fileobj)
                        if key.fileobj is process.stdout:
                            said, bomb = self._obituary(), self._process.multiplied
                            raise (PredictorError if bomb else PredictorLostError)(said)
                    elif key.fileobj is process.stdout:
                        self._received += data
                    else:
                        self._keep(data)
        finally:
            self.waited_s += time.monotonic() - began
            with suppress(KeyError):
                self._selector.unregister(process.stdin)
        return reply

    def _keep(self, printed: bytes) -> None:
        self._stderr = (self._stderr + printed)[-_KEPT_STDERR:]
        self._printed_bytes += len(printed)
        if self._printed_bytes > _MAX_STDERR:
            raise PredictorLostError(
                f"the predictor printed more than {_MAX_STDERR:,} bytes and was ended"
                + self._last_words()
            )

    def _take_frame(self) -> dict[str, Any] | None:
        """The next whole message in what was received, or None while it is incomplete."""
        if not MAGIC.startswith(self._received[: len(MAGIC)]):
            raise PredictorError(
                f"the predictor printed {_printable(self._received)!r} where a message was "
                "expected; stdout belongs to the protocol"
            )
        if len(self._received) < FRAME.size:
            return None
        _, header_bytes, payload_bytes = FRAME.unpack_from(self._received)
        if header_bytes > _MAX_HEADER or payload_bytes:
            raise PredictorError(
                f"the predictor announced a header of {header_bytes:,} and a payload of "
                f"{payload_bytes:,} bytes; replies have at most {_MAX_HEADER:,} and 0"
            )
        end = FRAME.size + header_bytes
        if len(self._received) < end:
            return None
        text, self._received = self._received[FRAME.size : end], self._received[end:]
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise PredictorError(
                f"the predictor answered {_printable(text)!r}, expected a JSON object"
            )
        return header

    def _obituary(self) -> str:
        popen = self._process.popen
        with suppress(subprocess.TimeoutExpired):
            popen.wait(timeout=1.0)
        assert popen.stderr is not None
        with suppress(OSError):
            for _ in range(16):  # a pipe's worth; it may never stop printing
                self._stderr += os.read(popen.stderr.fileno(), 1 << 12)
        self._stderr = self._stderr[-_KEPT_STDERR:]
        if self._process.ended_for:
            return f"the predictor was ended: {self._process.ended_for}" + self._last_words()
        code = popen.poll()
        how = "closed its output" if code is None else f"ended with exit code {code}"
        return f"the predictor {how} before it answered" + self._last_words()

    def _last_words(self) -> str:
        lines = [line for line in self._stderr.splitlines() if line.strip()]
        return f"; it last printed: {_printable(lines[-1])}" if lines else ""


def _printable(text: bytes) -> str:
    """At most 200 characters, none of which steers a terminal."""
    shown = text[:200].decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else " " for c in shown)
