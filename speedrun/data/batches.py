"""Training batches as a pure function of (seed, step): to resume, ask for the next step.

A window is `sequence_length` inputs and, one token on, as many targets. Neighbours share that one
token, so no target is lost between them; windows never cross from one file to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedrun.config import RunConfig
from speedrun.data.shards import MAX_VOCAB_SIZE, Tokens, open_shard
from speedrun.errors import DataError


def open_batches(shards: Sequence[Path], run: RunConfig) -> Batches:
    """The batches that a recipe asks for; with counted n-grams, of the tokens held out for it."""
    return Batches(
        shards,
        sequence_length=run.data.sequence_length,
        tokens_per_step=run.data.tokens_per_step,
        order=run.data.order,
        seed=run.seed,
        vocab_size=run.model.vocab_size,
        last_tokens=run.count.held_out_tokens if run.model.ngram_order else 0,
        bos_id=run.data.bos_id,
    )


class Batches:
    """The windows of some shards, dealt in global batches without end.

    `sequential` deals windows as they lie and starts again at the end. `shuffled` draws a new
    permutation for every epoch, and new starts: each shard's windows move together by up to the
    tokens that its last window leaves over. `documents` permutes windows that begin with a document
    (`align`), which repeats what it cuts. With `last_tokens` there are windows in so many tokens
    at the end of the shards only (or in half of all, if that is less).

    Raises
        DataError: a shard is damaged, the shards hold less than one batch, or the batch is no
            multiple of the sequence.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        sequence_length: int,
        tokens_per_step: int,
        order: Literal["shuffled", "sequential", "documents"] = "sequential",
        seed: int = 0,
        vocab_size: int = MAX_VOCAB_SIZE,
        last_tokens: int = 0,
        bos_id: int = 1,
    ) -> None:
        if sequence_length < 1 or tokens_per_step < 1 or tokens_per_step % sequence_length:
            raise DataError(
                f"a step of {tokens_per_step:,} tokens is not a whole number of sequences "
                f"of {sequence_length:,}"
            )
        self.sequence_length = sequence_length
        self.sequences_per_step = tokens_per_step // sequence_length
        self.order = order
        self.seed = seed
        self.vocab_size = vocab_size
        self._paths = list(shards)
        # Plain views: slicing a memmap object costs several times the copy of a window.
        self._tokens = [np.asarray(open_shard(path)) for path in self._paths]
        self.earlier: list[Tokens] = []
        """Tokens that `last_tokens` keeps out of the windows, shard by shard."""
        if last_tokens:
            self._keep_last(last_tokens)
        windows = [max(len(tokens) - 1, 0) // sequence_length for tokens in self._tokens]
        self._aligned: NDArray[np.int64] | None = None
        """First token of every window, where windows follow documents."""
        if order == "documents":
            starts = [align(tokens, sequence_length, bos_id) for tokens in self._tokens]
            windows, self._aligned = [each.size for each in starts], np.concatenate(starts)
        self._windows = np.array(windows, dtype=np.int64)
        self._ends = np.cumsum(self._windows)
        self.num_windows = int(self._windows.sum())
        """Windows of one epoch."""
        self.num_tokens = sum(map(len, self._tokens))
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        if self.num_windows < self.sequences_per_step:
            raise DataError(
                f"{len(self._paths)} shards hold {self.num_windows:,} windows of "
                f"{sequence_length + 1:,} tokens, one step needs {self.sequences_per_step:,}; "
                "lower data.tokens_per_step or data.sequence_length, or prepare more text"
            )

    def _keep_last(self, last_tokens: int) -> None:
        left = sum(map(len, self._tokens))
        left = max(left - last_tokens, left // 2)
        for i, tokens in enumerate(self._tokens):
            self.earlier.append(tokens[:left])
            self._tokens[i] = tokens[left:]
            left = max(left - len(tokens), 0)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Give the global batch of one step.

        Shapes
            inputs   (sequences_per_step, sequence_length)  int64, contiguous
            targets  (sequences_per_step, sequence_length)  int64, the token after each input

        Raises
            DataError: a token id is not below `vocab_size`.
        """
        return self.for_rank(step, rank=0, world=1)

    def for_rank(self, step: int, *, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Give one rank's rows of the same global batch: an equal, contiguous share.

        Raises
            DataError: the batch cannot be shared equally, or a token id is not below `vocab_size`.
        """
        windows = torch.from_numpy(self.rows(step, rank=rank, world=world).astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def rows(self, step: int, *, rank: int, world: int) -> NDArray[np.uint16]:
        """The same windows whole, as the shards hold them: a quarter of the bytes for a GPU's bus.

        Shapes
            result  (sequences_per_step / world, sequence_length + 1)  uint16
        """
        share, left = divmod(self.sequences_per_step, world)
        if left:
            raise DataError(
                f"{self.sequences_per_step:,} sequences a step cannot be shared by {world} ranks; "
                f"make data.tokens_per_step a multiple of {world * self.sequence_length:,}"
            )
        first = step * self.sequences_per_step + rank * share
        rows = np.empty((share, self.sequence_length + 1), dtype=np.uint16)
        shards, starts = self._locate(np.arange(first, first + share))
        for row, shard, start in zip(rows, shards.tolist(), starts.tolist(), strict=True):
            row[:] = self._tokens[shard][start : start + row.size]
        # On a GPU an id out of range is an assertion inside a kernel; here it has a name.
        if (largest := int(rows.max())) >= self.vocab_size:
            shard = shards[int(rows.max(axis=1).argmax())]
            raise DataError(
                f"{self._paths[shard]} holds token {largest:,}, the model's alphabet "
                f"has {self.vocab_size:,}; set model.vocab_size to the tokenizer's"
            )
        return rows

    def _locate(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard and first token of windows, numbered from the first ever dealt.

        Shapes
            windows, shards, starts  (n,)  int64
        """
        epochs, places = np.divmod(windows, self.num_windows)
        shards, starts = np.empty_like(windows), np.empty_like(windows)
        for epoch in np.unique(epochs):  # a batch may straddle two
            here = epochs == epoch
            order, phases = self._epoch(int(epoch))
            index = order[places[here]]
            shard = np.searchsorted(self._ends, index, side="right")
            if self._aligned is not None:
                shards[here], starts[here] = shard, self._aligned[index]
                continue
            offset = (index - self._ends[shard] + self._windows[shard]) * self.sequence_length
            shards[here], starts[here] = shard, phases[shard] + offset
        return shards, starts

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of the windows and phase of each shard; only neighbouring epochs are kept."""
        if self.order == "sequential":
            epoch = 0
        if epoch not in self._epochs:
            for stale in [kept for kept in self._epochs if abs(kept - epoch) > 1]:
                del self._epochs[stale]
            self._epochs[epoch] = self._draw(epoch)
        return self._epochs[epoch]

    def _draw(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.order == "sequential":
            return np.arange(self.num_windows), np.zeros(len(self._tokens), dtype=np.int64)
        # Raw bits, because NumPy promises only these to be the same in every release.
        bits = np.random.PCG64(np.random.SeedSequence([self.seed % 2**64, epoch]))
        slack = [  # windows of documents overlap, so there may be less than none
            max(len(tokens) - 1 - windows * self.sequence_length, 0)
            for tokens, windows in zip(self._tokens, self._windows.tolist(), strict=True)
        ]
        phases = bits.random_raw(len(slack)) % (np.array(slack, dtype=np.uint64) + np.uint64(1))
        return np.argsort(bits.random_raw(self.num_windows), kind="stable"), phases.astype(np.int64)


def align(tokens: Tokens, sequence_length: int, bos_id: int) -> NDArray[np.int64]:
    """Starts of windows that begin with a document.

    A document that a window cuts off begins the next one, unless it fills the window: then the next
    goes on with it. So no token is left out but those of a last window that would not be full.
    """
    size, starts, start = sequence_length + 1, [], 0
    begins = np.flatnonzero(tokens == bos_id)
    while start + size <= len(tokens):
        starts.append(start)
        last = int(np.searchsorted(begins, start + sequence_length, side="right")) - 1
        following = int(begins[last]) if last >= 0 else 0
        start = following if following > start else start + sequence_length
    return np.array(starts, dtype=np.int64)
