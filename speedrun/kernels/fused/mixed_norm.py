"""Residual mix and RMS norm in one pass over memory, forwards and backwards."""

# M rows, C channels, P programs of the backward pass

import torch
import triton
import triton.language as tl
from torch import Tensor

from speedrun.kernels.rms_norm import EPSILON

PROGRAMS = 1024
"""Rows are dealt to so many programs at most: each leaves one partial sum per channel."""


@triton.jit
def _forward_kernel(x, other, keep, take, mixed, normed, C, epsilon, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * C
    at = tl.arange(0, BLOCK)
    known = at < C
    first = tl.load(x + row + at, mask=known, other=0.0).to(tl.float32)
    second = tl.load(other + row + at, mask=known, other=0.0).to(tl.float32)
    kept = tl.load(keep + at, mask=known, other=0.0).to(tl.float32) * first
    taken = tl.load(take + at, mask=known, other=0.0).to(tl.float32) * second
    # The norm is that of the sum as it is stored, so that the backward pass can see it again.
    total = (kept + taken).to(mixed.dtype.element_ty)
    tl.store(mixed + row + at, total, mask=known)
    total = total.to(tl.float32)
    root = 1 / tl.sqrt(tl.sum(total * total, 0) / C + epsilon)
    tl.store(normed + row + at, (total * (root * scale)).to(normed.dtype.element_ty), mask=known)


@triton.jit
def _backward_kernel(
    x, other, keep, take, mixed, up_mixed, up_normed, grad_x, grad_other, sums_keep, sums_take,
    M, C, epsilon, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    known = at < C
    kept = tl.load(keep + at, mask=known, other=0.0).to(tl.float32)
    taken = tl.load(take + at, mask=known, other=0.0).to(tl.float32)
    sum_keep = tl.zeros((BLOCK,), tl.float32)
    sum_take = tl.zeros((BLOCK,), tl.float32)
    row = program.to(tl.int64) * C
    for _ in range(program, M, tl.num_programs(0)):
        total = tl.load(mixed + row + at, mask=known, other=0.0).to(tl.float32)
        above = tl.load(up_normed + row + at, mask=known, other=0.0).to(tl.float32) * scale
        square = 1 / (tl.sum(total * total, 0) / C + epsilon)
        along = tl.sum(above * total, 0) / C
        gradient = (above - total * (along * square)) * tl.sqrt(square)
        gradient += tl.load(up_mixed + row + at, mask=known, other=0.0).to(tl.float32)
        found_x = (gradient * kept).to(grad_x.dtype.element_ty)
        found_other = (gradient * taken).to(grad_other.dtype.element_ty)
        sum_keep += gradient * tl.load(x + row + at, mask=known, other=0.0).to(tl.float32)
        sum_take += gradient * tl.load(other + row + at, mask=known, other=0.0).to(tl.float32)
        tl.store(grad_x + row + at, found_x, mask=known)
        tl.store(grad_other + row + at, found_other, mask=known)
        row += tl.num_programs(0).to(tl.int64) * C
    tl.store(sums_keep + program * C + at, sum_keep, mask=known)
    tl.store(sums_take + program * C + at, sum_take, mask=known)


def mixed_norm(
    x: Tensor, other: Tensor, keep_C: Tensor | None, take_C: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`rms_norm.mix_and_norm` for any leading axes."""
    keep_C = torch.ones_like(take_C) if keep_C is None else keep_C
    shape = x.shape
    rows = x.reshape(-1, shape[-1]), other.reshape(-1, shape[-1])
    mixed, normed = _mixed_norm(*rows, keep_C, take_C, scale)
    return mixed.view(shape), normed.view(shape)


@torch.library.custom_op("speedrun::mixed_norm", mutates_args=())
def _mixed_norm(
    x_MC: Tensor, other_MC: Tensor, keep_C: Tensor, take_C: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    x_MC, other_MC = x_MC.contiguous(), other_MC.contiguous()
    mixed_MC, normed_MC = torch.empty_like(x_MC), torch.empty_like(x_MC)
    M, C = x_MC.shape
    if M:
        _forward_kernel[M,](
            x_MC, other_MC, keep_C.contiguous(), take_C.contiguous(), mixed_MC, normed_MC,
            C, EPSILON, scale, BLOCK=triton.next_power_of_2(C),
        )  # fmt: skip
    return mixed_MC, normed_MC


@_mixed_norm.register_fake
def _(
    x_MC: Tensor, other_MC: Tensor, keep_C: Tensor, take_C: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(x_MC, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like)


@torch.library.custom_op("speedrun::mixed_norm_gradient", mutates_args=())
def _mixed_norm_gradient(
    x_MC: Tensor, other_MC: Tensor, keep_C: Tensor, take_C: Tensor, mixed_MC: Tensor,
    up_mixed_MC: Tensor, up_normed_MC: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = [each.contiguous() for each in (x_MC, other_MC)]
    above = [each.contiguous() for each in (mixed_MC, up_mixed_MC, up_normed_MC)]
    M, C = x_MC.shape
    programs = min(M, PROGRAMS)
    grad_x, grad_other = (torch.empty_like(each) for each in rows)
    sums_keep, sums_take = (
        torch.zeros(programs, C, device=x_MC.device, dtype=torch.float32) for _ in range(2)
    )
    if M:
        _backward_kernel[programs,](
            *rows, keep_C.contiguous(), take_C.contiguous(), *above, grad_x, grad_other,
            sums_keep, sums_take, M, C, EPSILON, scale, BLOCK=triton.next_power_of_2(C),
        )  # fmt: skip
    grad_keep, grad_take = (sums.sum(0).to(take_C.dtype) for sums in (sums_keep, sums_take))
    return grad_x, grad_other, grad_keep, grad_take


@_mixed_norm_gradient.register_fake
def _(
    x_MC: Tensor, other_MC: Tensor, keep_C: Tensor, take_C: Tensor, mixed_MC: Tensor,
    up_mixed_MC: Tensor, up_normed_MC: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    like = torch.empty_like(x_MC, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like), torch.empty_like(take_C), torch.empty_like(take_C)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[0])


def _backward(ctx, up_mixed_MC, up_normed_MC):
    return *_mixed_norm_gradient(*ctx.saved_tensors, up_mixed_MC, up_normed_MC, ctx.scale), None


_mixed_norm.register_autograd(_backward, setup_context=_keep)
