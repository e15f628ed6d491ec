"""What a predictor must not know by heart: the validation text, and the order of its documents.

Nobody can look into weights. But who was trained on a text pays less for it than for a text that it
was not trained on; and who has stored a text pays for it by the order in which it was stored.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from speedrun.bpb import score
from speedrun.config import EvalConfig, ModelConfig
from speedrun.predict import Predictor
from speedrun.verify.probes import Floats, Ints, ask_nats
from speedrun.verify.rules import Rule
from speedrun.verify.verdict import RuleResult

Tokens = NDArray[np.uint16]

ORDER = 4
"""Tokens of the n-grams that make a target new: its own and those before it."""
MEMORY_SHARE = 0.03
"""By how much less new targets of the validation text may cost than such of the training text."""
REFERENCE_TOKENS = 15_000_000
"""Training tokens in which n-grams are looked up, spread over the shards."""
VALIDATION_TOKENS = 300_000
"""Validation targets that are looked up."""
SPLICE_SHARE = 0.3
"""By how much more a document may cost when it follows another one than in the split."""
SURE = 4.5
"""Standard errors beyond which a difference of means is no accident."""
NUM_DOCUMENTS = 24
NUM_WINDOWS = 24
"""Windows of training text that a fixed predictor is asked for, at least."""
NUM_TARGETS = 32_768
MAX_TARGETS = 262_144
"""Targets in them, at least, and at most where there is time."""
CLUSTER = 1_024
"""Targets of a running text whose mean counts as one observation: neighbours are alike."""
MIN_CLUSTERS = 6
SPEED_SLACK = 3.0
"""The peak of a busy machine is measured too low; by no more than this."""


def memorisation(
    predictor: Predictor,
    tokens: Tokens,
    nats: Floats,
    training: Sequence[Tokens],
    evaluation: EvalConfig,
    rng: np.random.Generator,
    *,
    seconds: float = 1.0,
) -> RuleResult:
    """New targets cost no less in the validation text than in the text that was trained on.

    A target is new if its n-gram stands nowhere else: neither in the training text nor in the
    validation text, so that a name which a document keeps repeating counts in neither. Both kinds
    are alike for whoever has seen neither text, since the split was drawn by chance; whoever has
    trained on the one text only finds it cheaper.

    What the validation text costs is what the scoring pass was credited with, so there is nothing
    to be gained by forgetting it now. Training text is asked for as the scoring pass asked; an
    adaptive predictor goes through as much of it, and observes it.

    Args:
        predictor: A fresh process.
        tokens, nats: The stream, and what the scoring pass gave its targets.
        training: Training shards, memory maps are fine.
        evaluation: How the scoring pass asked.
        rng: Chooses the places.
        seconds: How long to ask for more training text than is needed at least.

    Raises
        PredictorError: the predictor does not answer.
    """
    rule = Rule("memorisation")
    length = min(evaluation.context, len(tokens) - 1)
    share = min(1.0, REFERENCE_TOKENS / max(sum(map(len, training)), 1))
    reference = [shard[: int(len(shard) * share)] for shard in training]
    reference = [shard for shard in reference if len(shard) > length + ORDER]
    if not reference:
        return rule.undecided("no training text here to compare with", "fetch training shards")
    if predictor.kind == "fixed":
        known_grams, known_nats, size = _ask_windows(
            predictor, reference, length, evaluation, rng, seconds
        )
        start = int(rng.integers(max(1, len(nats) - VALIDATION_TOKENS)))
        stop = start + VALIDATION_TOKENS
    else:
        stream = max(reference, key=len)[: min(len(tokens), VALIDATION_TOKENS)]
        known_nats = np.empty(len(stream) - 1)
        how = dataclasses.asdict(evaluation)
        score(predictor, stream, num_bytes=1, keep=known_nats, **how)
        known_grams, size = _grams(stream), CLUSTER
        start, stop = 0, len(known_nats)  # as far as both have learnt as much
    held_grams, held_nats = _grams(tokens[start : stop + 1]), nats[start:stop]
    grams = np.concatenate([known_grams, held_grams])
    is_new = _count_grams(grams, [*reference, tokens[start : stop + 1]]) <= 1
    known = _mean(known_nats, is_new[: len(known_grams)], size)
    held_out = _mean(held_nats, is_new[len(known_grams) :], CLUSTER)
    if known is None or held_out is None:
        return rule.result(True, "does not apply", evidence="hardly any target is new")
    gap, error = known[0] - held_out[0], math.hypot(known[1], held_out[1]) + 1e-9
    return rule.result(
        gap <= MEMORY_SHARE * known[0] or gap / error < SURE,
        f"{held_out[0]:.3f} nats per new token, training text {known[0]:.3f}",
        f"at most {MEMORY_SHARE:.0%} below the training text",
        evidence=f"apart by {gap / error:+.1f} standard errors over {known[2]:,} and "
        f"{held_out[2]:,} new tokens; a difference from "
        f"{max(MEMORY_SHARE, SURE * error / known[0]):.1%} on fails",
        fix="keep the validation text out of training, counting and calibration",
    )


def _ask_windows(
    predictor: Predictor,
    shards: Sequence[Tokens],
    length: int,
    evaluation: EvalConfig,
    rng: np.random.Generator,
    seconds: float,
) -> tuple[NDArray[np.uint64], Floats, int]:
    """N-grams and nats of targets in random windows of training text, and how many each has."""
    # Strides of a few tokens would need thousands of windows for as many targets.
    stride = max(evaluation.stride, min(64, length // 8))
    scored = max(0, length - stride)
    sizes = np.array([len(shard) for shard in shards], dtype=np.float64)
    grams: list[NDArray[np.uint64]] = []
    nats: list[Floats] = []
    ends, most = time.perf_counter() + seconds, -(-MAX_TARGETS // stride)
    while len(nats) < max(NUM_WINDOWS, NUM_TARGETS // stride) or (
        len(nats) < most and time.perf_counter() < ends
    ):
        shard = shards[int(rng.choice(len(shards), p=sizes / sizes.sum()))]
        start = int(rng.integers(len(shard) - length))
        text = np.asarray(shard[start : start + length + 1])
        inputs = text[None, :-1].astype(np.int64)
        nats.append(ask_nats(predictor, inputs, np.array([scored]), text[1 + scored :]))
        grams.append(_grams(text)[scored:])
    return np.concatenate(grams), np.concatenate(nats), length - scored


def _mean(nats: Floats, is_new: NDArray[np.bool_], size: int) -> tuple[float, float, int] | None:
    """Mean nats of the new targets, its standard error, and their number.

    Stretches of `size` targets are taken as independent of each other, targets in one of them are
    not: the error of a ratio of sums over clusters.
    """
    cuts = range(0, len(nats), size)
    sums = np.add.reduceat(np.where(is_new, nats, 0.0), cuts)
    counts = np.add.reduceat(is_new.astype(np.float64), cuts)
    used = int((counts > 0).sum())
    if used < MIN_CLUSTERS:
        return None
    mean, total = float(sums.sum() / counts.sum()), float(counts.sum())
    spread = float(((sums - mean * counts) ** 2).sum()) * used / (used - 1)
    return mean, math.sqrt(spread) / total, int(total)


def _grams(text: Tokens) -> NDArray[np.uint64]:
    """The n-gram that ends at each target of a text: (len(text) - 1,).

    The first ones are cut short, and taken for one that stands nowhere.
    """
    grams = np.full(max(len(text) - 1, 0), np.iinfo(np.uint64).max, np.uint64)
    grams[ORDER - 2 :] = _join(np.asarray(text, np.uint16))
    return grams


def _join(tokens: Tokens) -> NDArray[np.uint64]:
    """Numbers of the `ORDER` tokens up to each place of the last axis."""
    count = tokens.shape[-1] - ORDER + 1
    number = np.zeros((*tokens.shape[:-1], count), np.uint64)
    for shift in range(ORDER):
        number = number << np.uint64(16) | tokens[..., shift : shift + count]
    return number


def _count_grams(
    wanted: NDArray[np.uint64], reference: Sequence[Tokens], piece: int = 1 << 22
) -> NDArray[np.int64]:
    """How often each wanted n-gram stands in the reference."""
    names, places = np.unique(wanted, return_inverse=True)
    counts = np.zeros(len(names) + 1, np.int64)
    for shard in reference:
        for start in range(0, len(shard), piece):
            found = _join(np.asarray(shard[start : start + piece + ORDER - 1], np.uint16))
            at = np.minimum(np.searchsorted(names, found), len(names) - 1)
            counts += np.bincount(
                np.where(names[at] == found, at, len(names)), minlength=len(counts)
            )
    return counts[places]


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
    chosen = rng.choice(begins, min(len(begins), NUM_DOCUMENTS), replace=False)
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
