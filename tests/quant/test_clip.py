"""Protects the choice of the clip: least error of the stored grid, row by row."""

import pytest
import torch

from speedrun.errors import QuantError
from speedrun.quant.clip import deviation_clip, search_clip
from speedrun.quant.rows import dequantize_rows, quantize_rows

CANDIDATES = (0.9, 0.99, 0.999, 1.0)


def heavy_tailed(rows: int, cols: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, cols, generator=generator) ** 3


def squared_error(weight: torch.Tensor, clip: torch.Tensor, bits: int) -> torch.Tensor:
    codes, scales = quantize_rows(weight, clip, bits=bits)
    return (dequantize_rows(codes, scales) - weight).double().square().sum(dim=1)


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_search_agrees_with_trying_torch_quantiles(bits: int) -> None:
    weight = heavy_tailed(20, 300)
    found = squared_error(weight, search_clip(weight, bits=bits, candidates=CANDIDATES), bits)
    tried = [
        squared_error(weight, torch.quantile(weight.abs(), quantile, dim=1), bits)
        for quantile in CANDIDATES
    ]
    # torch interpolates in another order of operations; the clips differ in the last digit.
    assert torch.allclose(found, torch.stack(tried).amin(dim=0), rtol=1e-5)


def test_rows_in_any_order_give_the_same_clips() -> None:
    weight = heavy_tailed(50, 64)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    clip = search_clip(weight, bits=6, candidates=CANDIDATES)
    assert torch.equal(search_clip(weight[order], bits=6, candidates=CANDIDATES), clip[order])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(50, 64)
    clip = search_clip(weight, bits=6, candidates=CANDIDATES)
    monkeypatch.setattr("speedrun.quant.clip._CHUNK", 100)
    assert torch.equal(search_clip(weight, bits=6, candidates=CANDIDATES), clip)


def test_a_row_of_zeros_has_a_clip_all_the_same() -> None:
    assert search_clip(torch.zeros(2, 8), bits=6, candidates=(0.5, 1.0)).tolist() == [1.0, 1.0]


def test_a_sparse_row_keeps_its_one_weight() -> None:
    weight = torch.zeros(1, 1000)
    weight[0, 7] = 5.0
    assert search_clip(weight, bits=6, candidates=(0.5,)).tolist() == [5.0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1)])
def test_tiny_shapes(shape: tuple[int, int]) -> None:
    assert search_clip(torch.ones(shape), bits=6, candidates=(1.0,)).shape == shape[:1]


@pytest.mark.parametrize("candidates", [(), (0.0,), (1.1,)])
def test_impossible_candidates_are_refused(candidates: tuple[float, ...]) -> None:
    with pytest.raises(QuantError, match="quantiles in"):
        search_clip(torch.ones(2, 2), bits=6, candidates=candidates)


def test_deviations_set_the_clip_of_each_row() -> None:
    weight = torch.tensor([[3.0, -3.0, 3.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    assert deviation_clip(weight, deviations=4.0).tolist() == [12.0, 1.0]


def test_a_clip_of_no_deviations_is_refused() -> None:
    with pytest.raises(QuantError, match=r"clip of 0\.0 standard deviations"):
        deviation_clip(torch.ones(2, 2), deviations=0.0)
