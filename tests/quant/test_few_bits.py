"""Protects ternary and binary rows: the least error that a scale can reach."""

import pytest
import torch

from speedrun.quant.few_bits import binary_rows, ternary_clip
from speedrun.quant.rows import dequantize_rows, quantize_rows


def normal(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(5)) * 0.02


def test_no_other_scale_gives_ternary_rows_less_error() -> None:
    weight = normal(6, 50)

    def error(clip: torch.Tensor) -> torch.Tensor:
        rounded = dequantize_rows(*quantize_rows(weight, clip, bits=2))
        return (rounded - weight).double().square().sum(1)

    found = error(ternary_clip(weight))
    for share in torch.linspace(0.05, 1.0, 200):
        tried = error(weight.abs().amax(1) * share)
        # The best scale is rounded to float16 afterwards, which may cost a little.
        assert bool((found <= tried * (1 + 1e-3)).all())


def test_ternary_codes_of_a_bell_curve_are_zero_for_about_half_of_it() -> None:
    codes, _ = quantize_rows(w := normal(40, 2000), ternary_clip(w), bits=2)
    # 0.612 sigma is the threshold of the normal distribution's best ternary grid.
    assert float((codes == 0).float().mean()) == pytest.approx(0.459, abs=0.02)


def test_binary_rows_keep_signs_and_mean_magnitudes() -> None:
    weight = torch.tensor([[0.5, -1.5, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    codes, scales = binary_rows(weight)
    assert codes.tolist() == [[1, -1, 1, 1], [1, 1, 1, 1]]
    assert scales[0] == 1.0 and 0 < float(scales[1]) < 1e-7


def test_rows_of_zeros_and_no_columns_are_no_exception() -> None:
    assert ternary_clip(torch.zeros(2, 3)).tolist() == [1.0, 1.0]
    assert ternary_clip(torch.zeros(2, 0)).tolist() == [1.0, 1.0]
    assert binary_rows(torch.zeros(2, 0))[0].shape == (2, 0)
