"""Protects the fast operations: each agrees with its slow twin, over odd shapes and dtypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.kernels.cross_entropy import (
    log_probs,
    softcap_cross_entropy,
    softcap_cross_entropy_ref,
)
from speedrun.kernels.newton_schulz import matmul_dtype, newton_schulz, newton_schulz_ref
from speedrun.kernels.rms_norm import rms_norm, rms_norm_ref

sides = st.integers(1, 9)
seeds = st.integers(0, 2**31)


@given(rows=sides, cols=sides, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_rms_norm_agrees_with_its_formula(rows, cols, seed):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 3
    torch.testing.assert_close(rms_norm(x), rms_norm_ref(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_keeps_the_dtype_under_autocast_too(dtype):
    x = torch.randn(3, 7).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rms_norm(x).dtype == dtype
    # One rounding of the result, 2^-8 for bfloat16, may fall the other way.
    torch.testing.assert_close(rms_norm(x), rms_norm_ref(x), rtol=8e-3, atol=1e-6)


@given(count=st.integers(1, 3), rows=sides, cols=sides, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_newton_schulz_agrees_with_one_matrix_at_a_time(count, rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    updates = torch.randn(count, rows, cols, generator=generator, dtype=torch.float64)
    fast = newton_schulz(updates, 5, dtype=torch.float64)
    slow = torch.stack([newton_schulz_ref(update, 5) for update in updates])
    # The map multiplies a singular value by up to 3.4445^5 = 485, and so also what was rounded.
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 6, 3), (1, 1)])
def test_newton_schulz_keeps_the_shape_and_its_input(shape):
    update = torch.randn(shape)
    before = update.clone()
    assert newton_schulz(update).shape == shape
    assert torch.equal(update, before)


@pytest.mark.parametrize(
    ("singular_value", "expected"),
    [(0.01, 0.6989), (0.05, 0.7581), (0.1, 0.7121), (0.3, 1.0796), (0.5, 0.7654), (0.7, 1.1203)],
)
def test_newton_schulz_maps_singular_values_as_published(singular_value, expected):
    # Two singular values with a squared sum of one: the norm leaves them alone.
    other = (1 - singular_value**2) ** 0.5
    update = torch.diag(torch.tensor([singular_value, other], dtype=torch.float64))
    assert newton_schulz(update, dtype=torch.float64)[0, 0] == pytest.approx(expected, abs=6e-5)


def test_newton_schulz_of_one_value_is_as_published():
    one = torch.ones(1, 1, dtype=torch.float64)
    assert newton_schulz(one, dtype=torch.float64).item() == pytest.approx(0.6964, abs=6e-5)


def test_newton_schulz_of_zeros_is_zero():
    assert not newton_schulz(torch.zeros(2, 3, 4)).any()


def test_cpu_matmul_dtype_is_one_it_multiplies():
    assert matmul_dtype("cpu") in (torch.float32, torch.bfloat16)


@given(rows=sides, alphabet=st.integers(2, 17), cap=st.floats(1, 50), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_cross_entropy_agrees_with_a_loop(rows, alphabet, cap, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, alphabet, generator=generator) * 40).requires_grad_()
    targets = torch.randint(alphabet, (rows,), generator=generator)
    fast = softcap_cross_entropy(logits, targets, cap)
    slow = softcap_cross_entropy_ref(logits, targets, cap)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    (fast_grad,) = torch.autograd.grad(fast, logits)
    (slow_grad,) = torch.autograd.grad(slow, logits)
    torch.testing.assert_close(fast_grad, slow_grad, rtol=1e-4, atol=1e-6)


@given(rows=sides, alphabet=st.integers(2, 17), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_log_probs_agree_with_log_softmax(rows, alphabet, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, alphabet, generator=generator) * 40).requires_grad_()
    targets = torch.randint(alphabet, (rows,), generator=generator)
    found, surest = log_probs(logits, targets)
    expected = logits.log_softmax(1)
    torch.testing.assert_close(found, expected.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(surest, expected.detach().amax(1))
    assert not surest.requires_grad
    upstream = torch.randn(rows, generator=generator)
    (found_grad,) = torch.autograd.grad(found, logits, upstream)
    (expected_grad,) = torch.autograd.grad(expected[range(rows), targets], logits, upstream)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    logits = torch.randn(5, 11, dtype=torch.bfloat16)
    assert softcap_cross_entropy(logits, torch.arange(5), 30.0).dtype == torch.float32
