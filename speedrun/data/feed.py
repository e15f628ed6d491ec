"""Batches one after the other; for a GPU the next ones are made ready in the background."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedrun.data.batches import Batches
from speedrun.errors import DataError


class Feed:
    """One rank's share of the batches from `step` on, on `device`.

    With `ahead` so many batches wait, made by a thread, in pinned memory if `device` is a GPU: ids
    cross as two bytes each and become int64 there. By default two wait for a GPU and none on a CPU,
    where a thread would only take time from the training. The order is that of `batches` alone.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        step: int = 0,
        ahead: int | None = None,
    ) -> None:
        self.batches, self.rank, self.world, self.step = batches, rank, world, step
        self.device = device or torch.device("cpu")
        is_gpu = self.device.type == "cuda"
        self.waited_s = 0.0
        """Time that `next` stood still because no batch was ready."""
        self._ahead = (2 if is_gpu else 0) if ahead is None else ahead
        self._is_pinned = is_gpu
        self._queue: queue.Queue[Any] = queue.Queue(max(self._ahead, 1))
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Feed:
        if self._ahead:
            self._thread = threading.Thread(target=self._fill, args=(self.step,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()

    def next(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next step, int64, on the device.

        Raises
            DataError: see `Batches.for_rank`.
        """
        begun_s = time.perf_counter()
        found = self._queue.get() if self._thread else self._make(self.step)
        self.waited_s += time.perf_counter() - begun_s
        if isinstance(found, BaseException):
            raise found
        self.step += 1
        # Where it is not pinned, this waits until the copy is made.
        rows = found.to(self.device, non_blocking=True).to(torch.int64) & 0xFFFF
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next batch: the step, and of which stream."""
        batches = self.batches
        return {
            "step": self.step,
            "seed": batches.seed,
            "order": batches.order,
            "sequence_length": batches.sequence_length,
            "sequences_per_step": batches.sequences_per_step,
            "num_windows": batches.num_windows,
            "num_tokens": batches.num_tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another feed was; before the `with` block. Ranks may be more or fewer now.

        Raises
            DataError: it was a feed of other batches.
        """
        wrong = {key: value for key, value in self.state().items() if state.get(key) != value}
        wrong.pop("step", None)
        if wrong or not isinstance(state.get("step"), int):
            key = min(wrong, default="step")
            raise DataError(
                f"the state is of another stream: {key} was {state.get(key)}, is {wrong.get(key)}; "
                "resume with the data and settings that it began with"
            )
        self.step = state["step"]

    def _make(self, step: int) -> Tensor:
        # Seen as int16, because torch can do little with uint16; the mask in `next` undoes it.
        rows = self.batches.rows(step, rank=self.rank, world=self.world).view(np.int16)
        tensor = torch.from_numpy(rows)
        return tensor.pin_memory() if self._is_pinned else tensor

    def _fill(self, step: int) -> None:
        while not self._is_closed.is_set():
            try:
                found: Any = self._make(step)
            except Exception as error:  # noqa: BLE001 (it is raised where the batch is asked for)
                found = error
            while not self._is_closed.is_set():
                try:
                    self._queue.put(found, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(found, Exception):
                return
            step += 1
