"""Counted n-grams as logits: a pruned back-off model that reads all training text in seconds.

A trie of token n-grams. Each stored n-gram carries a correction to the log-probability that the
shorter context gives its last token; the logits of a position are the sum over all suffixes of its
context, and their softmax is the back-off model. `counting` fits it, the network adds to it.
"""

# B batch, T tokens, V alphabet, C channels, N asked positions, n length of an n-gram

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.errors import FormatError

UNITS = 16
"""Log-probabilities are integers of 1/16 nat, so that sorting by them is the same everywhere."""
CODE_UNITS = 8
"""A correction's code counts half nats."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class NgramTable(nn.Module):
    """The trie as it is stored, in buffers whose sizes come with the weights.

    Shapes, n from 2 to `order`, entries of one order sorted by parent and then by rank
        gain        ()                  float32, learned: weight of these logits
        tilt        (C,)                float32, learned: how the network's state changes it
        unigram     (V,)                int16  log-probability of each token, in 1/16 nat
        children_n  (entries of n - 1)  int16  how many entries continue each (n = 2: each token)
        gaps_n      (entries of n)      int16  ranks skipped since the previous sister
        codes_n     (entries of n)      int8   correction, in half nats

    A rank is the place of a token when the tokens that may follow are sorted by what the shorter
    context says; likely tokens have small ranks, which compress well.

    Source
        Katz 1987 back-off with absolute discounts (Ney et al. 1994), pruned by weighted gain
        (Stolcke 1998). Ours: corrections as logits, so that no back-off weight is stored.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocab_size, self.order = config.vocab_size, config.ngram_order
        self.gain = nn.Parameter(torch.ones(()))
        self.tilt = nn.Parameter(torch.zeros(config.width))
        self.register_buffer("unigram", torch.zeros(config.vocab_size, dtype=torch.int16))
        for n in range(2, self.order + 1):
            parents = config.vocab_size if n == 2 else 0
            self.register_buffer(f"children_{n}", torch.zeros(parents, dtype=torch.int16))
            self.register_buffer(f"gaps_{n}", torch.zeros(0, dtype=torch.int16))
            self.register_buffer(f"codes_{n}", torch.zeros(0, dtype=torch.int8))
        self._rows: Floats | None = None
        self._contexts: list[tuple[Ints, Ints, Ints, Ints, Floats]] = []
        self._page: Floats = np.zeros((0, 0), dtype=np.float32)
        self._borrowed: weakref.ref[Floats] | None = None

    def fill(self, streams: dict[str, Tensor]) -> None:
        """Take over buffers of any length by name; FormatError if they are no trie."""
        for name, buffer in dict(self.named_buffers()).items():
            setattr(self, name, streams[name].to(buffer.device))
        self._unfold()

    def forward(self, logits_NV: Tensor, hidden_NC: Tensor, counted_NV: Tensor) -> Tensor:
        """The network's logits with these added: (N, V), hidden (N, C) -> (N, V)."""
        weight_N1 = self.gain + (hidden_NC * self.tilt).sum(1, keepdim=True)
        return logits_NV + weight_N1 * counted_NV

    def logits(self, ids_BT: Tensor, asked_BT: Tensor) -> Tensor:
        """What counting expects after each asked position.

        Shapes
            ids_BT    (B, T)  int64
            asked_BT  (B, T)  bool, True at N positions
            result    (N, V)  float32, row by row; softmax normalises
        """
        if self._rows is None:
            self._unfold()
        assert self._rows is not None
        ids = ids_BT.cpu().numpy()
        row, column = np.nonzero(asked_BT.cpu().numpy())
        context = ids[row, column]
        logits_NV = self._borrow(len(context))
        # Any other mode than clip works on a copy of `out`; the embedding refuses foreign tokens.
        np.take(self._rows, context, axis=0, out=logits_NV, mode="clip")
        flat = logits_NV.reshape(-1)
        for back, (keys, starts, counts, tokens, values) in enumerate(self._contexts, start=1):
            # A window's first tokens have shorter contexts only; -1 is no key.
            older = ids[row, np.maximum(column - back, 0)]
            context = np.where(column >= back, context + older * self.vocab_size**back, -1)
            if not len(keys):
                continue
            place = np.minimum(np.searchsorted(keys, context), len(keys) - 1)
            hit = np.flatnonzero(keys[place] == context)
            place = place[hit]
            entries, index = spans(starts[place], counts[place], hit * self.vocab_size)
            index += tokens[entries]
            # A context names each token once, so no index repeats and `+=` loses nothing.
            flat[index] += values[entries]
        return torch.from_numpy(logits_NV).to(ids_BT.device)

    def _borrow(self, num_rows: int) -> Floats:
        """Room for the result, the last one's if no tensor holds it any more.

        Fresh memory of this size costs more in page faults than all look-ups together.
        """
        is_held = self._borrowed is not None and self._borrowed() is not None
        if is_held or len(self._page) < num_rows:
            self._page = np.empty((num_rows, self.vocab_size), dtype=np.float32)
        # A tensor keeps the array alive that it was made from: this view, and no other one.
        view = self._page[:num_rows]
        self._borrowed = weakref.ref(view)
        return view

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        for name, buffer in dict(self.named_buffers()).items():
            given = state_dict.get(prefix + name)
            if given is not None and given.ndim == 1 and given.dtype == buffer.dtype:
                setattr(self, name, buffer.new_empty(given.shape))
        self._rows = None
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def _unfold(self) -> None:
        """Streams into what a lookup needs; they may come from a stranger's file."""
        streams = {name: buffer.cpu().numpy() for name, buffer in self.named_buffers()}
        base = streams["unigram"].astype(np.int32)
        if base.shape != (self.vocab_size,):
            raise FormatError(
                f"ngram.unigram has shape {base.shape}, need one for each of "
                f"the {self.vocab_size:,} tokens"
            )
        by_rank = np.argsort(-base, kind="stable")[None]
        last = keys = np.arange(self.vocab_size)
        rows = np.broadcast_to(base, (self.vocab_size, self.vocab_size)).copy()
        self._contexts = []
        for n in range(2, self.order + 1):
            children, gaps, codes = (
                streams[f"{part}_{n}"].astype(np.int64) for part in ("children", "gaps", "codes")
            )
            if len(children) != len(keys) or children.min(initial=0) < 0 or gaps.min(initial=0) < 0:
                raise FormatError(f"ngram.children_{n} does not fit the entries of order {n - 1}")
            if not children.sum() == len(gaps) == len(codes):
                raise FormatError(f"ngram.gaps_{n} and codes_{n} do not fit children_{n}")
            owner = np.repeat(np.arange(len(keys)), children)
            ends = np.cumsum(gaps + 1)
            starts = np.cumsum(children) - children
            ranks = ends - 1 - np.concatenate([[0], ends])[starts[owner]]
            if ranks.max(initial=0) >= self.vocab_size:
                raise FormatError(f"ngram.gaps_{n} lead beyond the {self.vocab_size:,} tokens")
            # One order of the alphabet serves all tokens at first, then each has its own.
            tokens = by_rank[last[owner] % len(by_rank), ranks]
            if n == 2:
                rows[owner, tokens] += codes.astype(np.int32) * CODE_UNITS
                by_rank = np.argsort(-rows, axis=1, kind="stable")
            else:
                used = np.flatnonzero(children)
                used = used[np.argsort(keys[used])]
                values = codes.astype(np.float32) * np.float32(CODE_UNITS / UNITS)
                self._contexts.append((keys[used], starts[used], children[used], tokens, values))
            keys, last = keys[owner] * self.vocab_size + tokens, tokens
        self._rows = rows.astype(np.float32) / np.float32(UNITS)


def spans(starts: Ints, counts: Ints, labels: Ints) -> tuple[Ints, Ints]:
    """Indices of many runs, one after the other, and the label of the run that each belongs to."""
    entries = np.repeat(starts - np.cumsum(counts) + counts, counts)
    entries += np.arange(len(entries))
    return entries, np.repeat(labels, counts)
