"""Ternary and binary weights: so few codes that the scale can be found exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from speedrun.quant.rows import LARGEST_SCALE, SMALLEST_SCALE, check_matrix


def ternary_clip(weight: Tensor) -> Tensor:
    """Clip of each row for codes -1, 0, 1 (two bits) with the least squared error.

    For the k largest magnitudes the best scale is their mean and saves k mean^2 of the row's
    energy; so one sort finds the best k.

    Shapes
        weight  (rows, cols)  float32
        result  (rows,)       float32, above zero; 1 for a row of zeros

    Source
        Li et al. 2016, arXiv:1605.04711. Ours differs: they approximate the threshold by 0.75 of
        the mean magnitude.
    """
    check_matrix(weight)
    if not weight.numel():
        return torch.ones(len(weight))
    tops = weight.abs().double().sort(dim=1, descending=True).values
    numbers = torch.arange(1, tops.shape[1] + 1, dtype=torch.float64)
    means = tops.cumsum(1) / numbers
    best = (means.square() * numbers).argmax(1, keepdim=True)
    clip = means.gather(1, best)[:, 0].float()
    return torch.where(clip > 0, clip, 1.0)


def binary_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the signs of a row and its mean magnitude; zero counts as positive.

    Shapes
        weight  (rows, cols)  float32
        codes   (rows, cols)  int8, -1 or 1
        scales  (rows,)       float16, above zero

    Source
        XNOR-Net: Rastegari et al. 2016, arXiv:1603.05279.
    """
    check_matrix(weight)
    codes = torch.where(weight < 0, -1, 1).to(torch.int8)
    means = weight.abs().double().sum(1) / max(weight.shape[1], 1)
    return codes, means.clamp(SMALLEST_SCALE, LARGEST_SCALE).half()
