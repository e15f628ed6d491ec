"""Protects the grid that weights are rounded to: what is stored is what comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.errors import QuantError
from speedrun.quant.rows import dequantize_rows, max_code, quantize_rows


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_agree_with_a_slow_loop(bits: int) -> None:
    weight, clip = gaussian(5, 7), torch.tensor([0.5, 1.0, 2.0, 0.01, 3.0])
    codes, scales = quantize_rows(weight, clip, bits=bits)
    largest = 2 ** (bits - 1) - 1
    for row in range(5):
        scale = (clip[row] / largest).half().float()
        assert float(scales[row]) == float(scale)
        for col in range(7):
            expected = max(-largest, min(largest, round(float(weight[row, col] / scale))))
            assert int(codes[row, col]) == expected


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 40), bits=st.integers(2, 8))
def test_negated_weights_get_mirrored_codes(rows: int, cols: int, bits: int) -> None:
    weight = gaussian(rows, cols, seed=rows * 41 + cols)
    clip = weight.abs().amax(dim=1)
    codes, scales = quantize_rows(weight, clip, bits=bits)
    mirrored, same_scales = quantize_rows(-weight, clip, bits=bits)
    assert torch.equal(mirrored, -codes)
    assert torch.equal(same_scales, scales)
    assert int(codes.abs().max()) <= max_code(bits)


def test_unclipped_weights_come_back_within_half_a_step() -> None:
    weight = gaussian(64, 128)
    codes, scales = quantize_rows(weight, weight.abs().amax(dim=1), bits=6)
    error = (dequantize_rows(codes, scales) - weight).abs()
    # The float16 scale may be a 2,048th too small for the largest weight: 31 codes of that.
    assert bool((error <= scales.float()[:, None] * (0.5 + 31 / 2048)).all())


def test_rounding_is_idempotent() -> None:
    weight = gaussian(16, 32)
    clip = weight.abs().amax(dim=1)
    codes, scales = quantize_rows(weight, clip, bits=6)
    again, _ = quantize_rows(dequantize_rows(codes, scales), scales.float() * 31, bits=6)
    assert torch.equal(again, codes)


def test_dequantize_keeps_leading_axes() -> None:
    codes = torch.arange(-12, 12, dtype=torch.int8).view(2, 3, 4)
    scales = torch.arange(1, 7, dtype=torch.float16).view(2, 3)
    weight = dequantize_rows(codes, scales)
    assert weight.dtype == torch.float32
    assert float(weight[1, 2, 3]) == 11 * 6


@pytest.mark.parametrize(
    ("weight", "clip", "text"),
    [
        (torch.ones(4), torch.ones(4), r"shape \(4,\), need a float32 matrix"),
        (torch.ones(2, 2).double(), torch.ones(2), "float64"),
        (torch.tensor([[1.0, float("nan")]]), torch.ones(1), "1 weights are NaN"),
        (torch.ones(2, 2), torch.ones(3), r"\(3,\) clips for 2 rows"),
        (torch.ones(2, 2), torch.tensor([1.0, 0.0]), "clips must be above 0"),
        (torch.ones(1, 2), torch.tensor([float("nan")]), "clips must be above 0"),
        (torch.ones(1, 2), torch.tensor([1e9]), "65,504"),
    ],
)
def test_impossible_rows_are_refused(weight: torch.Tensor, clip: torch.Tensor, text: str) -> None:
    with pytest.raises(QuantError, match=text):
        quantize_rows(weight, clip, bits=6)


@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(QuantError, match=f"{bits} bits per code, expected 2 to 8"):
        max_code(bits)
