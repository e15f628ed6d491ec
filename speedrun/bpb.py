"""The one definition of the number we compete on: bits per byte over sliding windows.

Training progress and the judge use this file alike. It asks a predictor (`predict.Predictor`) for
logits, normalises them itself and counts every target once, in order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from speedrun.errors import CoverageError, DataError, DistributionError, PredictorError
from speedrun.predict import Predictor

_MAX_BLOCK = 1 << 25
"""Logits of one call, at most (128 MiB of float32), as long as one window stays below it."""
_CHUNK = 1 << 21
"""Logits normalised at a time: bounds temporary memory; smaller ones wait for threads too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a predictor needed to tell a text. `num_bytes` are bytes of the raw UTF-8 text."""

    nats: float
    num_tokens: int
    num_bytes: int
    seconds: float
    model_seconds: float
    """Part of `seconds` spent inside `predict` and `observe`; the rest is ours."""

    @property
    def bpb(self) -> float:
        """Bits per byte of the raw text; lower is better."""
        return self.nats / (math.log(2) * self.num_bytes)

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood; the field's `val_loss`."""
        return self.nats / self.num_tokens


def windows(num_tokens: int, context: int, stride: int) -> np.ndarray:
    """Cut a stream into windows in which every token but the first is a target exactly once.

    Shapes
        result  (windows, 3)  int64: start, stop, scored. Inputs are tokens[start:stop], targets
                tokens[start + 1 : stop + 1], of which those from in-window position `scored` count.

    Only the last window can be shorter than `context`. All but the first score `stride` targets,
    each with at least `context - stride + 1` tokens before it; stride = context gives chunks.

    Raises
        DataError: fewer than two tokens, or not 1 <= stride <= context.

    Source
        Parameter Golf's sliding evaluation from #1218 on; ours also keeps streams that are shorter
        than `context - stride`, which its test would drop.
    """
    targets = num_tokens - 1
    if targets < 1:
        raise DataError(f"{num_tokens} tokens hold nothing to predict; a score needs 2 or more")
    if not 1 <= stride <= context:
        raise DataError(f"stride {stride} must be 1 to the context of {context} tokens")
    start = np.arange(1 + max(0, -(-(targets - context) // stride)), dtype=np.int64) * stride
    scored = np.where(start == 0, 0, context - stride)
    return np.stack([start, np.minimum(start + context, targets), scored], axis=1)


def token_nats(logits: np.ndarray | torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    """Negative log-likelihood of each target under the softmax of its row of logits.

    Exponentials are float32, their sums float64: a float32 sum may lose many small terms beside
    a large one, and a predictor could be built to gain from that.

    Shapes
        logits   (n, vocab)  float32 on any device, left unchanged
        targets  (n,)        integers below vocab
        result   (n,)        float64, nats, on the device of `logits`

    Raises
        DistributionError: a logit is NaN or infinite.
    """
    table = torch.as_tensor(logits)
    index = torch.from_numpy(targets.astype(np.int64)).to(table.device)
    rows = max(1, _CHUNK // table.shape[1])
    parts = []
    for block, target in zip(torch.split(table, rows), torch.split(index, rows), strict=True):
        low, high = block.aminmax()
        if not math.isfinite(float(high) - float(low)):
            raise DistributionError(
                f"logits reach from {float(low)} to {float(high)}; every logit must be finite"
            )
        top = block.amax(dim=1, keepdim=True)
        total = (block - top).exp_().sum(dim=1, dtype=torch.float64)
        parts.append(total.log_() - (block.gather(1, target[:, None]) - top).double()[:, 0])
    return torch.cat(parts)


def _batches(table: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Groups of at most `size` windows of equal length: a short last one goes alone, unpadded."""
    lengths = table[:, 1] - table[:, 0]
    full = int((lengths == lengths[:1]).sum())
    for first in range(0, full, size):
        yield table[first : min(first + size, full)]
    if full < len(table):
        yield table[full:]


def score(
    predictor: Predictor,
    tokens: np.ndarray,
    *,
    num_bytes: int,
    context: int,
    stride: int,
    batch_windows: int,
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
    keep: np.ndarray | None = None,
) -> Score:
    """Score a stream of tokens: every token but the first is predicted once, in order.

    An adaptive predictor is asked window by window, and observes tokens only after their nats are
    summed, each token once.

    Args:
        predictor: What is asked; see `predict.Predictor`.
        tokens: (n,) integers, the stream; a read-only memory map is fine.
        num_bytes: Bytes of raw text that the targets stand for.
        context, stride: See `windows`.
        batch_windows: Windows per call at most; fewer where the logits would not fit a block.
        progress: Called with (targets scored, targets in all) after every call.
        part: (rank, world): score one of `world` contiguous shares; sums of `nats` and
            `num_tokens` over all ranks are the whole. Not for adaptive predictors.
        keep: (n - 1,) floats; takes the nats of each target, tokens[i + 1] at i.

    Raises
        PredictorError: a vocabulary too small.
        CoverageError, DistributionError: logits of the wrong shape, or not finite.
        DataError: nothing to score.
    """
    vocab, (rank, world) = predictor.vocab_size, part
    if len(tokens) and int(tokens.max()) >= vocab:
        raise PredictorError(
            f"the text has token {int(tokens.max()):,}, the predictor's vocabulary ends at "
            f"{vocab - 1:,}; it was made for another tokenizer"
        )
    table = windows(len(tokens), context, stride)
    table = table[len(table) * rank // world : len(table) * (rank + 1) // world]
    targets_in_all = int((table[:, 1] - table[:, 0] - table[:, 2]).sum())
    adaptive = predictor.kind == "adaptive"
    # Windows of one call hold each other's targets: no more than one where something is learnt.
    size = 1 if adaptive else max(1, min(batch_windows, _MAX_BLOCK // (stride * vocab)))
    nats, done, model_s, began = 0.0, 0, 0.0, time.perf_counter()
    for batch in _batches(table, size):
        starts, stops, scored = batch.T
        inside = np.arange(stops[0] - starts[0])
        inputs = tokens[starts[:, None] + inside].astype(np.int64)
        places = (starts[:, None] + inside)[inside >= scored[:, None]]
        targets = tokens[places + 1]
        asked = time.perf_counter()
        logits = predictor.predict(inputs, scored)
        model_s += time.perf_counter() - asked
        if tuple(logits.shape) != (len(targets), vocab):
            raise CoverageError(
                f"logits have shape {tuple(logits.shape)}, expected ({len(targets)}, {vocab})"
            )
        found = token_nats(logits, targets)
        nats += float(found.sum())
        if keep is not None:
            keep[places] = found.cpu().numpy()
        done += len(targets)
        if adaptive:
            first = int(starts[0] + scored[0])
            asked = time.perf_counter()
            predictor.observe(tokens[first + (first > 0) : stops[-1] + 1].astype(np.int64))
            model_s += time.perf_counter() - asked
        if progress:
            progress(done, targets_in_all)
    return Score(
        nats=nats,
        num_tokens=done,
        num_bytes=num_bytes,
        seconds=time.perf_counter() - began,
        model_seconds=model_s,
    )
