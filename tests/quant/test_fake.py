"""Protects rounding inside training: it is the packer's, and gradients pass straight through."""

import pytest
import torch

from speedrun.config import ModelConfig, QuantConfig
from speedrun.errors import QuantError
from speedrun.model.init import build_model
from speedrun.pack.weights import pack_weights, unpack_weights
from speedrun.quant.fake import fake_quantize, fake_weights

TINY = ModelConfig(
    vocab_size=40, num_layers=2, width=16, num_heads=2, num_kv_heads=1, mlp_hidden=24
)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("deviations", [0.0, 2.5])
def test_fakes_are_the_weights_that_come_out_of_the_file(bits, deviations):
    model = build_model(TINY, seed=1)
    # One candidate that keeps the largest magnitude: the search has nothing to search.
    quant = QuantConfig(
        matrix_bits=bits,
        embedding_bits=bits,
        small_tensor_limit=100,
        clip_candidates=(1.0,),
        clip_deviations=deviations,
    )
    _, unpacked = unpack_weights(pack_weights(model.state_dict(), quant, {}))
    fakes = fake_weights(model, quant)
    packed = {name for name, weight in model.named_parameters() if weight.numel() > 100}
    assert fakes.keys() == {name for name in packed if model.get_parameter(name).ndim == 2}
    for name, fake in fakes.items():
        torch.testing.assert_close(fake, unpacked[name], rtol=1e-6, atol=1e-9)


def test_gradients_are_those_of_the_rounded_weight():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 7, generator=generator, requires_grad=True)
    pull = torch.randn(5, 7, generator=generator)
    (fake_quantize(weight, bits=3, deviations=1.0) * pull).sum().backward()
    assert torch.equal(weight.grad, pull)


def test_rows_of_zeros_and_few_values_survive():
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 4.0]])
    rounded = fake_quantize(weight, bits=3)
    # Codes -3 to 3 of step 4/3, which float16 knows to three digits.
    expected = torch.tensor([[0.0, 0.0, 0.0], [1.333, -2.667, 4.0]])
    torch.testing.assert_close(rounded, expected, rtol=0, atol=2e-3)


def test_dtype_stays():
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert fake_quantize(weight, bits=4).dtype == torch.bfloat16


def test_impossible_bits_are_named():
    with pytest.raises(QuantError, match="9 bits"):
        fake_quantize(torch.ones(2, 2), bits=9)
