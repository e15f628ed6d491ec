"""Protects the low-rank correction: near the best of its rank, on a grid with zero."""

import pytest
import torch

from speedrun.errors import QuantError
from speedrun.quant.low_rank import low_rank


def matrices() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    thin = torch.randn(40, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    noise = torch.randn(40, 30, generator=generator)
    inputs = torch.randn(200, 30, generator=generator) * torch.linspace(0.1, 3, 30)
    return thin + 0.05 * noise, inputs.T @ inputs / 200


def weighed(matrix: torch.Tensor, gram: torch.Tensor) -> float:
    return float(((matrix.double() @ gram.double()) * matrix.double()).sum())


def test_a_residual_of_low_rank_is_mostly_corrected() -> None:
    residual, gram = matrices()
    factors = low_rank(residual, 3, gram=gram)
    left = weighed(residual - factors.product(), gram)
    # Four bits leave about (1/15)^2 of each factor's energy; the noise is 0.1 %.
    assert left < 0.06 * weighed(residual, gram)


def test_seven_bits_come_close_to_the_best_of_that_rank() -> None:
    residual, _ = matrices()
    singular = torch.linalg.svdvals(residual.double())
    left = float((residual - low_rank(residual, 2, bits=7).product()).double().square().sum())
    assert left < 1.02 * float(singular[2:].square().sum())


def test_the_gram_decides_which_columns_count() -> None:
    residual, gram = matrices()
    aware, blind = (low_rank(residual, 1, gram=g, bits=7).product() for g in (gram, None))
    assert weighed(residual - aware, gram) < weighed(residual - blind, gram)


def test_codes_span_sixteen_values_and_zero_is_one_of_them() -> None:
    residual, gram = matrices()
    factors = low_rank(residual.abs(), 2, gram=gram)
    for codes in (factors.left.T, factors.right):
        for component in codes.int():
            assert max(int(component.max()), 0) - min(int(component.min()), 0) <= 15


def test_nothing_to_correct_gives_zeros() -> None:
    assert float(low_rank(torch.zeros(5, 4), 2).product().abs().max()) == 0.0


def test_impossible_ranks_and_grams_are_named() -> None:
    with pytest.raises(QuantError, match="rank 5 for a 8 x 4"):
        low_rank(torch.zeros(8, 4), 5)
    with pytest.raises(QuantError, match=r"gram of shape \(3, 3\) for 4 columns"):
        low_rank(torch.zeros(8, 4), 1, gram=torch.eye(3))
    with pytest.raises(QuantError, match="8 bits for the factors"):
        low_rank(torch.zeros(8, 4), 1, bits=8)
