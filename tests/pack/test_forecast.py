"""Protects the forecast: near what packing gives, from part of the rows."""

import pytest
import torch

from speedrun.config import QuantConfig
from speedrun.pack.forecast import forecast_size
from speedrun.pack.weights import pack_weights


@pytest.mark.parametrize("codec", ["ans", "zstd"])
def test_the_forecast_is_within_three_percent_of_the_file(codec: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "tok_emb.weight": torch.randn(1024, 128, generator=generator),
        "blocks.0.mlp.fc.weight": torch.randn(600, 300, generator=generator) * 0.1,
        "gain": torch.randn(500, generator=generator),
    }
    quant = QuantConfig(codec=codec, small_tensor_limit=64)
    found = forecast_size(weights, quant)
    packed = len(pack_weights(weights, quant, {}))
    assert found.model_bytes == pytest.approx(packed, rel=0.03)
    num_weights = sum(weight.numel() for weight in weights.values())
    assert found.bits_per_weight == pytest.approx(8 * packed / num_weights, rel=0.03)


def test_a_network_of_vectors_alone_has_a_size_too() -> None:
    weights = {"gain": torch.ones(40)}
    quant = QuantConfig()
    assert forecast_size(weights, quant).model_bytes == len(pack_weights(weights, quant, {}))
