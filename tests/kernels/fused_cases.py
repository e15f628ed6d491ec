"""Fused kernels against their plain twins: values and gradients, odd shapes, every dtype.

On a GPU: `pytest tests/kernels/fused_cases.py`. Elsewhere `test_fused.py` runs this file in a
process of its own, where Triton interprets its kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
import numpy as np
import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from speedrun.kernels.choose import choosing
from speedrun.kernels.cross_entropy import (
    head_cross_entropy,
    head_product,
    softcap_cross_entropy,
)
from speedrun.kernels.exclusive import exclude_own_value
from speedrun.kernels.fused import cross_entropy as fused_cross_entropy
from speedrun.kernels.fused import mixed_norm as fused_mixed_norm
from speedrun.kernels.fused.symmetric import TILE, symmetric_product
from speedrun.kernels.mlp import relu2_mlp
from speedrun.kernels.newton_schulz import newton_schulz
from speedrun.kernels.rms_norm import mix_and_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="no CUDA device, and Triton does not interpret (TRITON_INTERPRET=1)",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Error of a result relative to its norm: two roundings, or, in float32, sums in another order."""

SMALL = 1e-3
"""Norms below it count as this: float16 has steps of 6e-8 near zero."""


@pytest.fixture(autouse=True)
def honest_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter would multiply the bits of bfloat16 as if they were whole numbers."""
    if DEVICE == "cuda":
        return
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widen(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: plain(self, widen(a), widen(b), *rest),
    )


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def compare(
    name: str,
    call: Callable[..., Any],
    inputs: list[Tensor],
    *,
    rounding: float | None = None,
) -> None:
    """Results and gradients of `call`: fused, as far from float64 as the plain twin may be."""
    rounding = rounding or ROUNDING[inputs[0].dtype]
    for inputs_are, names in ((inputs, {name}), ([each.double() for each in inputs], set())):
        leaves = [each.detach().clone().requires_grad_() for each in inputs_are]
        with choosing(frozenset(names)):
            results = call(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        upstream = [draw(*each.shape, dtype=torch.bfloat16).to(each.dtype) for each in results]
        gradients = torch.autograd.grad(results, leaves, upstream)
        if names:
            found = [*results, *gradients]
    for mine, exact in zip(found, [*results, *gradients], strict=True):
        assert mine.shape == exact.shape
        error = ((mine.double() - exact).norm() / exact.norm().clamp_min(SMALL)).detach()
        assert error <= rounding, f"{name}: {float(error):.2e} relative error, {mine.dtype}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "alphabet"), [(1, 2), (5, 17), (3, 1024), (4, 1500), (2, 2049)])
def test_cross_entropy_agrees(rows: int, alphabet: int, dtype: torch.dtype) -> None:
    logits = draw(rows, alphabet, dtype=dtype, scale=40.0)
    targets = torch.arange(rows, device=DEVICE) * 7 % alphabet
    compare("cross_entropy", lambda x: softcap_cross_entropy(x, targets, 30.0), [logits])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's sigmoid
def test_cross_entropy_takes_any_cap_and_extreme_logits() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]], device=DEVICE)
    targets = torch.tensor([1, 2], device=DEVICE)
    for cap in (0.5, 30.0, 40.0, 200.0):
        with choosing(frozenset({"cross_entropy"})):
            fused = softcap_cross_entropy(logits, targets, cap)
        torch.testing.assert_close(fused, softcap_cross_entropy(logits, targets, cap))


def test_cross_entropy_reads_logits_with_strides() -> None:
    logits = draw(11, 6, scale=20.0).t()
    targets = torch.arange(6, device=DEVICE)
    compare("cross_entropy", lambda x: softcap_cross_entropy(x, targets, 15.0), [logits])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 16])
def test_head_agrees_whatever_the_chunk(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_cross_entropy, "CHUNK_LOGITS", 5 * 33)  # five rows at a time
    inputs = [draw(rows, 24, dtype=dtype), draw(33, 24, dtype=dtype)]
    targets = torch.arange(rows, device=DEVICE) * 5 % 33
    # Logits are rounded before the loss is taken, as in the plain twin: twice the error.
    rounding = 3 * ROUNDING[dtype]
    compare(
        "head",
        lambda x, w: head_cross_entropy(x, w, targets, 10.0),
        inputs,
        rounding=rounding,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(1, 3, 5), (130, 20, 150), (65, 72, 33)])
def test_mlp_agrees(shape: tuple[int, ...], slope: float, dtype: torch.dtype) -> None:
    rows, channels, hidden = shape
    inputs = [
        draw(rows, channels, dtype=dtype),
        draw(hidden, channels, dtype=dtype, scale=channels**-0.5),
        draw(channels, hidden, dtype=dtype, scale=hidden**-0.5),
    ]
    # Where the sign of a hidden value hangs on its last bit, so does its gradient.
    compare("mlp", lambda *each: relu2_mlp(*each, slope), inputs, rounding=3 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 40), (9, 3), (2, 513)])
def test_mixed_norm_agrees(
    shape: tuple[int, ...], keeps: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_mixed_norm, "PROGRAMS", 4)  # some take several rows
    vectors = [draw(shape[-1], dtype=dtype) + 1 for _ in range(1 + keeps)]
    inputs = [draw(*shape, dtype=dtype), draw(*shape, 1, dtype=dtype)[..., 0] + 0.5, *vectors]

    def call(x: Tensor, other: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return mix_and_norm(x, other, rest[0] if keeps else None, rest[-1], 0.3)

    # One channel is normalised to one whatever it was: its gradient is nearly zero.
    rounding = 4 * ROUNDING[dtype] if shape[-1] > 3 else 0.1
    compare("mixed_norm", call, inputs, rounding=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), (2, 7, 2, 2, 16), (1, 40, 3, 1, 5)])
def test_exclusive_agrees(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, tokens, kv_heads, group, width = shape
    y = draw(batch, kv_heads * group, tokens, width, dtype=dtype).transpose(1, 2)
    v = draw(batch, tokens, kv_heads + 1, width, dtype=dtype)[:, :, 1:]
    compare("exclusive", exclude_own_value, [y, v], rounding=8 * ROUNDING[dtype])


def test_exclusive_leaves_outputs_beside_a_zero_value() -> None:
    y, v = draw(1, 2, 2, 4), torch.zeros(1, 2, 1, 4, device=DEVICE)
    with choosing(frozenset({"exclusive"})):
        assert torch.equal(exclude_own_value(y, v), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 65, 20), (3, 64, 130), (1, 130, 64)])
def test_symmetric_product_agrees_and_its_halves_are_mirrored(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = draw(*shape, dtype=dtype)
    exact = x.double() @ x.double().mT
    added = exact.to(dtype)
    for product, expected in (
        (symmetric_product(x, None, 1.0, 0.0), exact),
        (symmetric_product(x, added, 0.5, -2.0), 0.5 * exact - 2 * added.double()),
        (symmetric_product(x.mT.contiguous().mT, None, 1.0, 0.0), exact),
    ):
        error = (product.double() - expected).norm() / expected.norm()
        assert error <= ROUNDING[dtype], float(error)
        below = product[:, TILE:, :TILE]
        assert torch.equal(below, product.mT[:, TILE:, :TILE])


@pytest.mark.parametrize("shape", [(2, 20, 70), (70, 20), (3, 9, 9)])
def test_newton_schulz_is_the_same_with_half_the_products(shape: tuple[int, ...]) -> None:
    updates = draw(*shape)
    with choosing(frozenset({"symmetric"})):
        fused = newton_schulz(updates, dtype=torch.float32)
    # The map multiplies what was rounded by up to 485; see test_kernels.py.
    torch.testing.assert_close(
        fused, newton_schulz(updates, dtype=torch.float32), rtol=1e-3, atol=1e-3
    )


def test_compiled_graphs_take_every_operation_whole() -> None:
    fc, proj = draw(12, 8, scale=0.3).requires_grad_(), draw(8, 12, scale=0.3).requires_grad_()
    table, scale = draw(9, 8).requires_grad_(), draw(8).requires_grad_()
    x, targets = draw(2, 3, 8).requires_grad_(), torch.arange(6, device=DEVICE)

    def loss(kind: str) -> Tensor:
        mixed, normed = mix_and_norm(x, x * 0.5, None, scale, 0.5)
        value = mixed.view(2, 3, 2, 4)
        excluded = exclude_own_value(value.repeat_interleave(2, 2), value)
        hidden = (relu2_mlp(normed, fc, proj, 0.5) + excluded[:, :, ::2].flatten(2)).flatten(0, 1)
        if kind == "head":
            return head_cross_entropy(hidden, table, targets, 30.0)
        return softcap_cross_entropy(F.linear(hidden, table), targets, 30.0)

    leaves = [x, fc, proj, table, scale]
    for kind in ("head", "cross_entropy"):
        plain = torch.autograd.grad(loss(kind), leaves)
        with choosing(frozenset({"cross_entropy", "head", "mlp", "mixed_norm", "exclusive"})):
            whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
            fused = torch.autograd.grad(whole(kind), leaves)
        for mine, theirs in zip(fused, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_evaluation_takes_the_plain_path() -> None:
    logits, targets = draw(4, 9, scale=20.0), torch.arange(4, device=DEVICE)
    plain = softcap_cross_entropy(logits, targets, 30.0)
    with choosing(frozenset({"cross_entropy"})), torch.inference_mode():
        assert torch.equal(softcap_cross_entropy(logits, targets, 30.0), plain)


def has_8_bit_products() -> bool:
    return DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9)


@pytest.mark.skipif(not has_8_bit_products(), reason="this GPU has no 8-bit products")
def test_the_8_bit_head_rounds_forwards_only() -> None:
    x, weight = draw(32, 48, dtype=torch.bfloat16), draw(64, 48, dtype=torch.bfloat16, scale=0.02)
    x = F.rms_norm(x, (48,)).requires_grad_()
    weight.requires_grad_()
    exact = F.linear(x, weight)
    upstream = draw(32, 64, dtype=torch.bfloat16)
    with choosing(frozenset({"fp8_head"})):
        rounded = head_product(x, weight)
        gradients = torch.autograd.grad(rounded, (x, weight), upstream)
    error = ((rounded - exact).norm() / exact.norm()).item()
    # Three bits after the point: each factor is off by 2^-5 on average, in a random direction.
    assert 0.005 < error < 0.06
    for mine, theirs in zip(
        gradients, torch.autograd.grad(exact, (x, weight), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)
