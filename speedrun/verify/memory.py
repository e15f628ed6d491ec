"""What a predictor must not know by heart: the validation text, and the order of its documents.

Nobody can look into weights. But who was trained on a text pays less for it than for a text that it
was not trained on; and who has stored a text pays for it by the order in which it was stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from speedrun.config import EvalConfig, ModelConfig
from speedrun.predict import Predictor
from speedrun.verify.probes import Floats, Ints, ask_nats
from speedrun.verify.rules import Rule
from speedrun.verify.verdict import RuleResult

Tokens = NDArray[np.uint16]

MEMORY_SHARE = 0.1
"""By how much less the validation text may cost than the training text."""
SPLICE_SHARE = 0.3
"""By how much more a document may cost when it follows another one than in the split."""
SURE = 6.0
"""Standard errors beyond which a difference of means is no accident (p < 1e-8)."""
NUM_WINDOWS = 24
"""Windows of each text; each costs a forward pass of one window."""
SPEED_SLACK = 3.0
"""The peak of a busy machine is measured too low; by no more than this."""


def memorisation(
    predictor: Predictor,
    validation: Tokens,
    training: Sequence[Tokens],
    evaluation: EvalConfig,
    rng: np.random.Generator,
) -> RuleResult:
    """The validation text costs no less than the text that the predictor was trained on.

    Both are asked of the same process, in windows of the same shape, at random places.

    Args:
        predictor: A fresh one; an adaptive one has observed nothing.
        validation: (n,) the stream that is scored.
        training: Training shards, memory maps are fine.
        evaluation: Shape of the windows.
        rng: Chooses the places.

    Raises
        PredictorError: the predictor does not answer.
    """
    rule = Rule("memorisation")
    length = min(evaluation.context, len(validation) - 1)
    scored = max(0, min(evaluation.context - evaluation.stride, length - 1))
    shards = [shard for shard in training if len(shard) > length]
    if not shards:
        return rule.undecided("no training text here to compare with", "fetch training shards")
    sizes = np.array([len(shard) for shard in shards], dtype=np.float64)

    def mean_nats(shard: Tokens) -> float:
        start = int(rng.integers(len(shard) - length))
        text = np.asarray(shard[start : start + length + 1])
        inputs = text[None, :-1].astype(np.int64)
        return float(ask_nats(predictor, inputs, np.array([scored]), text[1 + scored :]).mean())

    known, held_out = [], []
    for _ in range(NUM_WINDOWS):
        known.append(mean_nats(shards[int(rng.choice(len(shards), p=sizes / sizes.sum()))]))
        held_out.append(mean_nats(validation))
    gap = float(np.mean(known) - np.mean(held_out))
    error = math.sqrt((np.var(known, ddof=1) + np.var(held_out, ddof=1)) / NUM_WINDOWS) + 1e-9
    return rule.result(
        gap <= MEMORY_SHARE * float(np.mean(known)) or gap / error < SURE,
        f"{np.mean(held_out):.3f} nats per token, training text {np.mean(known):.3f}",
        f"at most {MEMORY_SHARE:.0%} below the training text",
        evidence=f"{NUM_WINDOWS} windows of each, apart by {gap / error:+.1f} standard errors",
        fix="keep the validation text out of training, counting and calibration",
    )


def document_splice(
    predictor: Predictor,
    tokens: Tokens,
    nats: Floats,
    bos_id: int,
    evaluation: EvalConfig,
    rng: np.random.Generator,
) -> RuleResult:
    """A document costs about the same when it follows another one than in the split.

    Args:
        predictor: A fixed one.
        tokens, nats: The stream and what the scoring pass gave its targets.
        bos_id: What documents begin with.
        evaluation: How the scoring pass asked.
        rng: Chooses the documents.

    Raises
        PredictorError: the predictor does not answer.
    """
    rule = Rule("document-splice")
    half = min(evaluation.context // 2, evaluation.stride)
    begins = np.flatnonzero(tokens[:-1] == bos_id)
    begins = begins[(begins >= half) & (begins + half < len(nats))]
    if len(begins) < 4:
        said = f"the split has {len(begins)} documents that are long enough"
        return rule.result(True, "does not apply", evidence=said)
    chosen = rng.choice(begins, min(len(begins), NUM_WINDOWS), replace=False)
    others = np.roll(chosen, 1)
    before: Ints = np.stack([tokens[o - half : o] for o in others]).astype(np.int64)
    rises, usual = [], []
    for row, begin in enumerate(chosen.tolist()):
        text = tokens[begin : begin + half + 1]
        inputs = np.concatenate([before[row], text[:-1].astype(np.int64)])[None]
        again = ask_nats(predictor, inputs, np.array([half]), text[1:])
        first = nats[begin : begin + half]
        rises.append(float(again.mean() - first.mean()))
        usual.append(float(first.mean()))
    rise, error = float(np.mean(rises)), float(np.std(rises, ddof=1)) / math.sqrt(len(rises)) + 1e-9
    limit = SPLICE_SHARE * float(np.mean(usual))
    return rule.result(
        rise <= limit or rise / error < SURE,
        f"{rise:+.3f} nats per token over {len(rises)} documents",
        f"{limit:+.3f}",
        evidence=f"{rise / error:+.1f} standard errors; in the order of the split a token costs "
        f"{np.mean(usual):.3f} nats",
        fix="the artifact holds the order of the validation documents; train without them",
    )


def speed(
    num_tokens: int,
    seconds: float,
    model: ModelConfig | None,
    peak_flops: Callable[[], float] | None = None,
) -> RuleResult:
    """The network that the artifact declares can be run so fast on this device.

    Args:
        num_tokens: Targets that were answered.
        seconds: Spent waiting for the predictor.
        model: What `model.srz` declares; None for a predictor of the user's own.
        peak_flops: Tells this device's matrix products, operations per second; only asked where
            it matters.
    """
    rule = Rule("speed")
    rate = num_tokens / max(seconds, 1e-9)
    measured = f"{rate:,.0f} tokens/s"
    if model is None or not (weights := matrix_weights(model)):
        said = "no network is declared, so no speed is too high"
        return rule.result(True, measured, evidence=said)
    peak = (peak_flops or measure_peak_flops)()
    limit = SPEED_SLACK * peak / (2 * weights)
    return rule.result(
        rate <= limit,
        measured,
        f"{limit:,.0f} tokens/s",
        evidence=f"{weights:,} matrix weights, {peak / 1e9:,.0f} GFLOP/s measured, slack "
        f"{SPEED_SLACK:g}; answers that come faster were not computed by this network",
        fix="declare the network that runs",
    )


def matrix_weights(model: ModelConfig) -> int:
    """Weights that every answered token is multiplied with, at least."""
    width, kv_width = model.width, model.num_kv_heads * model.head_width
    block = 2 * width * (width + kv_width) + 2 * width * model.mlp_hidden
    return model.num_layers * block + width * model.vocab_size


def measure_peak_flops() -> float:
    """Operations per second of the fastest matrix product here, over the dtypes in use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, best = (8192, 0.0) if device == "cuda" else (1024, 0.0)
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        for _ in range(3):  # the first call sets things up
            began = time.perf_counter()
            float((left @ right)[0, 0])
            rate = 2 * size**3 / (time.perf_counter() - began)
            if rate < best / 4:  # a processor without bfloat16 emulates it, slowly
                break
            best = max(best, rate)
    return best
