"""The largest magnitude that each row keeps: searched among quantiles, or so many deviations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speedrun.errors import QuantError
from speedrun.quant.rows import LARGEST_SCALE, SMALLEST_SCALE, check_matrix, codes_of, max_code

_CHUNK = 1 << 17  # elements worked on at once: they stay in a core's cache


def search_clip(weight: Tensor, *, bits: int, candidates: Sequence[float]) -> Tensor:
    """Clip of each row with the least squared rounding error among quantiles of its magnitudes.

    Shapes
        weight  (rows, cols)  float32
        clip    (rows,)       float32, above zero; 1 for a row of zeros

    Raises
        QuantError: weight is not a finite matrix, no candidates, or one outside (0, 1].

    Source
        "GPTQ-lite", parameter-golf PR #374. Ours differs: there a matrix chooses one quantile,
        here each row its own; and errors are those of the float16 scale that will be stored.
    """
    check_matrix(weight)
    if not candidates or not all(0 < quantile <= 1 for quantile in candidates):
        raise QuantError(f"clip candidates {tuple(candidates)}, expected quantiles in (0, 1]")
    rows, cols = weight.shape
    if not weight.numel():
        return torch.ones(rows)
    step = max(1, _CHUNK // cols)
    chunks = (weight[start : start + step] for start in range(0, rows, step))
    return torch.cat([_search(chunk, max_code(bits), candidates) for chunk in chunks])


def deviation_clip(weight: Tensor, *, deviations: float) -> Tensor:
    """Clip of each row at so many standard deviations: few sizes of codes, so few bytes.

    Shapes
        weight  (rows, cols)  float32
        clip    (rows,)       float32, above zero; 1 for a row of equal weights

    Raises
        QuantError: weight is not a finite matrix, or `deviations` is not above zero.

    Source
        SDClip, parameter-golf PR #1394. Ours differs: zero is the mean, which a symmetric grid
        takes for granted.
    """
    check_matrix(weight)
    if not deviations > 0:
        raise QuantError(f"a clip of {deviations} standard deviations, expected more than 0")
    clip = weight.double().square().mean(1).sqrt().float() * deviations
    return torch.where(clip > 0, clip, 1.0)


def _search(weight: Tensor, largest: int, candidates: Sequence[float]) -> Tensor:
    last = weight.shape[1] - 1
    # Interpolated quantiles need only the largest magnitudes; sorting all takes ten times as long.
    lowest = int(min(candidates) * last)
    tops = weight.abs().topk(last + 1 - lowest, dim=1).values.flip(1)
    best_clip = torch.ones(len(weight))
    best_error = torch.full((len(weight),), torch.inf, dtype=torch.float64)
    for quantile in dict.fromkeys(candidates):
        below = int(quantile * last)
        low, high = tops[:, below - lowest], tops[:, min(below + 1, last) - lowest]
        clip = low + (high - low) * (quantile * last - below)
        # A row with few weights other than zero would be rounded away whole.
        clip = torch.where(clip > 0, clip, tops[:, -1])
        scales = (clip / largest).clamp(SMALLEST_SCALE, LARGEST_SCALE).half().float()
        residual = codes_of(weight, scales, largest).mul_(scales[:, None]).sub_(weight)
        # Double sums: another order of addition on another processor must not decide a row.
        error = residual.double().square_().sum(1)
        better = (error < best_error) & (clip > 0)
        best_clip = torch.where(better, clip, best_clip)
        best_error = torch.where(better, error, best_error)
    return best_clip
