"""Rounding inside training: the forward pass sees the weights as they will be packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speedrun.config import QuantConfig
from speedrun.quant.rows import LARGEST_SCALE, SMALLEST_SCALE, code_bits, max_code


def fake_quantize(weight: Tensor, *, bits: int, deviations: float = 0.0) -> Tensor:
    """Each row rounded to codes of `bits` and back; the gradient is that of the weight itself.

    A row keeps its largest magnitude, or `deviations` of its standard deviations around zero. What
    the packer searches for (`clip.search_clip`) would take longer than the step; it can only round
    closer than this.

    Shapes
        weight  (..., rows, cols)  any floating dtype; the result has its shape and dtype

    Raises
        QuantError: bits are not 2 to 8.

    Source
        Straight-through estimator: Bengio et al. 2013, arXiv:1308.3432; in training as in the
        parameter-golf record of 1.1586, there at a fixed quantile.
    """
    rounded = _round(weight.detach().float(), max_code(bits), deviations)
    return weight + (rounded.to(weight.dtype) - weight).detach()


def fake_weights(model: nn.Module, quant: QuantConfig) -> dict[str, Tensor]:
    """Name -> fake-quantised weight of every parameter that packing will round."""
    faked: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        bits = code_bits(name, parameter, quant)
        if bits:
            faked[name] = fake_quantize(parameter, bits=bits, deviations=quant.clip_deviations)
    return faked


def _round(weight: Tensor, largest: int, deviations: float) -> Tensor:
    if deviations:
        clip = weight.square().mean(-1, keepdim=True).sqrt() * deviations
    else:
        clip = weight.abs().amax(-1, keepdim=True)
    # float16, as scales are stored.
    scales = (clip / largest).clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16).float()
    return (weight / scales).round().clamp(-largest, largest) * scales
