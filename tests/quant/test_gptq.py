"""Protects GPTQ: agreement with a slow version, smaller output error, the same codes every time."""

import pytest
import torch

from speedrun.errors import QuantError
from speedrun.quant.gptq import feedback_of, gptq_rows
from speedrun.quant.rows import codes_of, dequantize_rows, quantize_rows


def layer(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the gram of inputs that share most of their variance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) * 0.3 + torch.eye(cols)
    inputs = torch.randn(4 * cols, cols, generator=generator) @ mixing
    weight = torch.randn(rows, cols, generator=generator) * 0.1
    return weight, inputs.T @ inputs / len(inputs)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> float:
    error = (rounded - weight).double()
    return float(((error @ gram.double()) * error).sum())


def slow_gptq(weight, scales, gram, largest):
    """The paper's loop, one column at a time, the inverse recomputed for those that are left."""
    order = gram.diagonal().argsort(descending=True, stable=True).tolist()
    damped = gram.double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    left, work = list(order), weight.double().clone()
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        column = left[0]
        code = (work[:, column] / scales.double()).round().clamp(-largest, largest)
        codes[:, column] = code.to(torch.int8)
        error = (work[:, column] - code * scales.double()) / inverse[0, 0]
        work[:, left] -= error[:, None] * inverse[0][None, :]
        left = left[1:]
    return codes


@pytest.mark.parametrize(("rows", "cols"), [(5, 1), (7, 12), (9, 150)])
def test_gptq_agrees_with_the_loop_of_the_paper(rows: int, cols: int) -> None:
    weight, gram = layer(rows, cols)
    _, scales = quantize_rows(weight, weight.abs().amax(1), bits=4)
    found = gptq_rows(weight, scales, feedback_of(gram), largest=7)
    assert torch.equal(found, slow_gptq(weight, scales, gram, 7))


def test_gptq_halves_the_output_error_of_nearest_rounding() -> None:
    weight, gram = layer(64, 200)
    nearest, scales = quantize_rows(weight, weight.abs().amax(1), bits=4)
    codes = gptq_rows(weight, scales, feedback_of(gram), largest=7)
    before = output_error(weight, dequantize_rows(nearest, scales), gram)
    after = output_error(weight, dequantize_rows(codes, scales), gram)
    assert after < before / 2


def test_without_correlations_gptq_is_nearest_rounding() -> None:
    weight, _ = layer(20, 140)
    codes, scales = quantize_rows(weight, weight.abs().amax(1), bits=5)
    gram = torch.diag(torch.rand(140, generator=torch.Generator().manual_seed(1)) + 0.1)
    assert torch.equal(gptq_rows(weight, scales, feedback_of(gram), largest=15), codes)


def test_a_column_that_is_always_zero_changes_no_other() -> None:
    weight, gram = layer(10, 30)
    _, scales = quantize_rows(weight, weight.abs().amax(1), bits=6)
    gram[4], gram[:, 4] = 0, 0
    dead = weight.clone()
    dead[:, 4] = 0
    codes, without = (
        gptq_rows(each, scales, feedback_of(gram), largest=31) for each in (weight, dead)
    )
    assert torch.equal(codes[:, 5:], without[:, 5:]) and torch.equal(codes[:, :4], without[:, :4])
    assert torch.equal(codes[:, 4].float(), codes_of(weight, scales.float(), 31)[:, 4])


def test_the_factor_gives_the_error_that_later_columns_cannot_mend() -> None:
    _, gram = layer(1, 6)
    order, factor = feedback_of(gram, damping=0.0)
    ordered = gram.double()[order][:, order]
    # The last column has nobody after it; its error costs its own mean square.
    assert float(factor[5, 5]) == pytest.approx(float(ordered[5, 5]) ** -0.5, rel=1e-6)
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(ordered), atol=1e-4)


def test_codes_do_not_depend_on_the_number_of_threads() -> None:
    weight, gram = layer(128, 300)
    _, scales = quantize_rows(weight, weight.abs().amax(1), bits=4)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gptq_rows(weight, scales, feedback_of(gram), largest=7))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_an_empty_matrix_has_no_codes() -> None:
    codes = gptq_rows(torch.zeros(0, 3), torch.ones(0).half(), feedback_of(torch.eye(3)), largest=7)
    assert codes.shape == (0, 3) and codes.dtype == torch.int8


def test_what_is_no_gram_is_refused() -> None:
    weight, gram = layer(4, 6)
    scales = torch.ones(4).half()
    with pytest.raises(QuantError, match=r"gram of shape \(5, 6\)"):
        feedback_of(gram[:5])
    with pytest.raises(QuantError, match="finite"):
        feedback_of(gram * torch.nan)
    with pytest.raises(QuantError, match="negative mean square"):
        feedback_of(-gram)
    indefinite = torch.eye(6)
    indefinite[0, 1] = indefinite[1, 0] = 5.0
    with pytest.raises(QuantError, match="not positive at column"):
        feedback_of(indefinite)
    with pytest.raises(QuantError, match=r"\(3,\) scales for 4 rows"):
        gptq_rows(weight, scales[:3], feedback_of(gram), largest=7)
    with pytest.raises(QuantError, match="feedback of 5 columns for 6"):
        gptq_rows(weight, scales, feedback_of(gram[:5, :5]), largest=7)
