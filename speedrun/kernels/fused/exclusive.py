"""The XSA projection in one pass over memory, forwards and backwards, whatever the strides."""

# B batch, T tokens, H query heads, K value heads, G = H/K, D head width

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 32
EPSILON = 1e-12
"""Smallest norm of a value, as torch's normalize has it."""


@triton.jit
def _kernel(
    y, v, upstream, out, grad_v, num_tokens, T, K, D, epsilon,
    y_b, y_t, y_h, v_b, v_t, v_k, up_b, up_t, up_h,
    G: tl.constexpr, IS_GRADIENT: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    batch, time = (token // T).to(tl.int64), (token % T).to(tl.int64)
    at = tl.arange(0, BLOCK)
    known = (token < num_tokens)[:, None] & (at < D)[None, :]
    value = tl.load(
        v + (batch * v_b + time * v_t + head * v_k)[:, None] + at[None, :], mask=known, other=0.0
    ).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, 1))
    # Rounded as the plain twin rounds it, which multiplies in the dtype of y.
    unit = value / tl.maximum(length, epsilon)[:, None]
    unit = unit.to(y.dtype.element_ty).to(tl.float32)
    grad_unit = tl.zeros((TOKENS, BLOCK), tl.float32)
    for member in tl.static_range(G):
        query = head * G + member
        place = (batch * y_b + time * y_t + query * y_h)[:, None] + at[None, :]
        # The result is contiguous: (B, T, H, D).
        to = ((token.to(tl.int64) * (K * G) + query) * D)[:, None] + at[None, :]
        mine = tl.load(y + place, mask=known, other=0.0).to(tl.float32)
        shared = tl.sum(mine * unit, 1)[:, None]
        if IS_GRADIENT:
            above_at = (batch * up_b + time * up_t + query * up_h)[:, None] + at[None, :]
            above = tl.load(upstream + above_at, mask=known, other=0.0).to(tl.float32)
            along = tl.sum(above * unit, 1)[:, None]
            found = above - along * unit
            grad_unit -= along * mine + shared * above
        else:
            found = mine - shared * unit
        tl.store(out + to, found.to(out.dtype.element_ty), mask=known)
    if IS_GRADIENT:
        along_unit = tl.sum(grad_unit * unit, 1)[:, None]
        # Below epsilon the length is no longer divided by, so it has no gradient.
        along_unit = tl.where((length > epsilon)[:, None], along_unit, 0.0)
        found = (grad_unit - along_unit * unit) / tl.maximum(length, epsilon)[:, None]
        to = ((token.to(tl.int64) * K + head) * D)[:, None] + at[None, :]
        tl.store(grad_v + to, found.to(grad_v.dtype.element_ty), mask=known)


def _launch(
    y: Tensor, v: Tensor, upstream: Tensor, out: Tensor, grad_v: Tensor, *, is_gradient: bool
) -> None:
    B, T, K, D = v.shape
    y, v, upstream = (
        each if each.stride(3) == 1 else each.contiguous() for each in (y, v, upstream)
    )
    if not B * T:
        return
    _kernel[triton.cdiv(B * T, BLOCK_TOKENS), K](
        y, v, upstream, out, grad_v, B * T, T, K, D,
        EPSILON, *y.stride()[:3], *v.stride()[:3], *upstream.stride()[:3],
        G=y.size(2) // K, IS_GRADIENT=is_gradient, TOKENS=BLOCK_TOKENS,
        BLOCK=triton.next_power_of_2(D),
    )  # fmt: skip


@torch.library.custom_op("speedrun::exclude_own_value", mutates_args=())
def exclude(y_BTHD: Tensor, v_BTKD: Tensor) -> Tensor:
    """`exclusive.exclude_own_value`, contiguous whatever came in."""
    out_BTHD = torch.empty_like(y_BTHD, memory_format=torch.contiguous_format)
    _launch(y_BTHD, v_BTKD, y_BTHD, out_BTHD, out_BTHD, is_gradient=False)
    return out_BTHD


@exclude.register_fake
def _(y_BTHD: Tensor, v_BTKD: Tensor) -> Tensor:
    return torch.empty_like(y_BTHD, memory_format=torch.contiguous_format)


@torch.library.custom_op("speedrun::exclude_own_value_gradient", mutates_args=())
def exclude_gradient(
    y_BTHD: Tensor, v_BTKD: Tensor, upstream_BTHD: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients at y and v, contiguous.

    With u = v / |v| and s = y u: the result y - s u sends back g - (g u) u to y, and to v what the
    sum over the group of -(g u) y - s g leaves across u, over |v|.
    """
    grad_y = torch.empty_like(y_BTHD, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v_BTKD, memory_format=torch.contiguous_format)
    _launch(y_BTHD, v_BTKD, upstream_BTHD, grad_y, grad_v, is_gradient=True)
    return grad_y, grad_v


@exclude_gradient.register_fake
def _(y_BTHD: Tensor, v_BTKD: Tensor, upstream_BTHD: Tensor) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    grad_y = torch.empty_like(y_BTHD, memory_format=contiguous)
    return grad_y, torch.empty_like(v_BTKD, memory_format=contiguous)


exclude.register_autograd(
    lambda ctx, upstream: exclude_gradient(*ctx.saved_tensors, upstream),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
