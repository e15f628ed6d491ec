"""How large a file the weights of this moment would make: a look while training runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from speedrun.config import QuantConfig
from speedrun.pack.weights import Rows, pack_weights, round_weights, write_weights
from speedrun.quant.rows import is_rounded

_SAMPLE = 1 << 16  # weights of each tensor that are rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """An estimate from part of the rows; code not included."""

    model_bytes: int
    bits_per_weight: float


def forecast_size(weights: dict[str, Tensor], quant: QuantConfig) -> Forecast:
    """Estimate what packing with `quant` gives, from up to 65,536 weights of each tensor.

    With `fit` the size is the cap's; this then tells what uniform bits would take, that is how much
    the fit has to give up or may spend.

    Raises
        PackError: a tensor has no place in the file.
    """
    small = {name: weight for name, weight in weights.items() if not is_rounded(weight, quant)}
    total = float(len(pack_weights(small, quant, {})))
    # Sampled alone, a file has the same kind of overhead once more: it is taken off again.
    empty_bytes = len(write_weights({}, quant.codec, {}))
    num_weights = sum(weight.numel() for weight in small.values())
    for name in sorted(weights.keys() - small.keys()):
        weight = weights[name].detach().to("cpu", torch.float32)
        rows = weight.reshape(-1, weight.shape[-1])
        count = max(1, _SAMPLE // rows.shape[1])
        some = rows[torch.arange(0, len(rows), -(-len(rows) // count))]
        # The whole tensor decides whether it is rounded, not the part.
        part = round_weights({name: some}, _every(quant))
        assert isinstance(part[name], Rows)
        packed = len(write_weights(part, quant.codec, {})) - empty_bytes
        total += packed * rows.numel() / some.numel()
        num_weights += rows.numel()
    return Forecast(model_bytes=round(total), bits_per_weight=8 * total / max(num_weights, 1))


def _every(quant: QuantConfig) -> QuantConfig:
    return dataclasses.replace(quant, small_tensor_limit=0)
