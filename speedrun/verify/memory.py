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

ORDER = 4
"""Tokens of the n-grams that make a target new: its own and those before it."""
MEMORY_SHARE = 0.03
"""By how much less new targets of the validation text may cost than such of the training text."""
REFERENCE_TOKENS = 30_000_000
"""Training tokens in which n-grams are looked up, spread over the shards."""
SPLICE_SHARE = 0.3
"""By how much more a document may cost when it follows another one than in the split."""
SURE = 6.0
"""Standard errors beyond which a difference of means is no accident (p < 1e-8)."""
NUM_DOCUMENTS = 24
NUM_WINDOWS = 48
"""Windows of each text that are compared."""
WINDOW_TOKENS = 1_024
"""Their length, if the context is not shorter; the later half counts."""
SPEED_SLACK = 3.0
"""The peak of a busy machine is measured too low; by no more than this."""


def memorisation(
    predictor: Predictor,
    validation: Tokens,
    training: Sequence[Tokens],
    evaluation: EvalConfig,
    rng: np.random.Generator,
) -> RuleResult:
    """New targets cost no less in the validation text than in the text that was trained on.

    A target is new if its n-gram stands nowhere in the training text; one of the training text, if
    it stands nowhere else in it. Both kinds are alike for whoever has seen neither text, since the
    split was drawn by chance; whoever has trained on the one text only finds it cheaper.

    Args:
        predictor: A fresh one; an adaptive one has observed nothing.
        validation: (n,) the stream that is scored.
        training: Training shards, memory maps are fine.
        evaluation: Longest windows.
        rng: Chooses the places.

    Raises
        PredictorError: the predictor does not answer.
    """
    rule = Rule("memorisation")
    length = min(evaluation.context, WINDOW_TOKENS, len(validation) - 1)
    share = min(1.0, REFERENCE_TOKENS / max(sum(map(len, training)), 1))
    reference = [shard[: int(len(shard) * share)] for shard in training]
    reference = [shard for shard in reference if len(shard) > length + ORDER]
    if not reference or length < 2:
        return rule.undecided("no training text here to compare with", "fetch training shards")
    known, held_out = _windows(reference, length, rng), _windows([validation], length, rng)
    counts = _count_grams(np.concatenate([_grams(known), _grams(held_out)]), reference)
    # A window begins with a token that is no target, and no n-gram ends in its first half.
    new = np.concatenate(
        [counts[: NUM_WINDOWS * length] <= 1, counts[NUM_WINDOWS * length :] == 0]
    ).reshape(2, NUM_WINDOWS, length)[:, :, length // 2 :]
    costs = [
        [
            ask_nats(
                predictor,
                window[None, :-1].astype(np.int64),
                np.array([length // 2]),
                window[1 + length // 2 :],
            )
            for window in part
        ]
        for part in (known, held_out)
    ]
    means = [
        np.array([row[mask].mean() for row, mask in zip(rows, masks, strict=True) if mask.any()])
        for rows, masks in zip(costs, new, strict=True)
    ]
    if min(len(part) for part in means) < 8:
        said = "hardly a target of either text is new"
        return rule.result(True, "does not apply", evidence=said)
    gap = float(means[0].mean() - means[1].mean())
    error = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in means)) + 1e-9
    return rule.result(
        gap <= MEMORY_SHARE * float(means[0].mean()) or gap / error < SURE,
        f"{means[1].mean():.3f} nats per new token, training text {means[0].mean():.3f}",
        f"at most {MEMORY_SHARE:.0%} below the training text",
        evidence=f"{new.sum():,} new tokens in {sum(map(len, means))} windows, apart by "
        f"{gap / error:+.1f} standard errors",
        fix="keep the validation text out of training, counting and calibration",
    )


def _windows(shards: Sequence[Tokens], length: int, rng: np.random.Generator) -> Tokens:
    """`NUM_WINDOWS` random pieces of `length + 1` tokens: (NUM_WINDOWS, length + 1)."""
    sizes = np.array([len(shard) for shard in shards], dtype=np.float64)
    chosen = rng.choice(len(shards), NUM_WINDOWS, p=sizes / sizes.sum())
    starts = [int(rng.integers(len(shards[index]) - length)) for index in chosen]
    rows = [shards[n][s : s + length + 1] for n, s in zip(chosen, starts, strict=True)]
    return np.stack(rows).astype(np.uint16)


def _grams(rows: Tokens) -> NDArray[np.uint64]:
    """The n-gram that ends at each target of each row; those that begin before it are cut."""
    wide = np.concatenate([np.zeros((len(rows), ORDER - 2), np.uint16), rows], axis=1)
    return _join(wide).reshape(-1)


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
