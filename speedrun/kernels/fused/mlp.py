"""The squared-ReLU MLP with its activation inside the products, forwards and backwards."""

# M rows, C channels, H hidden channels; of a product: M by N, K summed over

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_M, TILE_N, TILE_K, TILES_TOGETHER = 128, 128, 64, 8
LAUNCH = {"num_warps": 8, "num_stages": 3}


@triton.jit
def _kernel(
    a, b, before, out, M, N, K, a_m, a_k, b_n, b_k, slope, IS_GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time share rows of a and b in the cache.
    tiles_m, tiles_n = tl.cdiv(M, TILE_M), tl.cdiv(N, TILE_N)
    group, within = (
        tl.program_id(0) // (TOGETHER * tiles_n),
        tl.program_id(0) % (TOGETHER * tiles_n),
    )
    height = tl.minimum(tiles_m - group * TOGETHER, TOGETHER)
    m = (group * TOGETHER + within % height) * TILE_M + tl.arange(0, TILE_M).to(tl.int64)
    n = (within // height) * TILE_N + tl.arange(0, TILE_N)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, K, TILE_K):
        k = start + tl.arange(0, TILE_K)
        left = tl.load(
            a + m[:, None] * a_m + k[None, :] * a_k,
            mask=(m < M)[:, None] & (k < K)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            b + n[None, :] * b_n + k[:, None] * b_k,
            mask=(n < N)[None, :] & (k < K)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(left, right, total, input_precision=PRECISION)
    place = m[:, None] * N + n[None, :]
    known = (m < M)[:, None] & (n < N)[None, :]
    if IS_GRADIENT:
        hidden = tl.load(before + place, mask=known, other=0.0).to(tl.float32)
        total *= 2 * hidden * tl.where(hidden > 0, 1.0, slope * slope)
    else:
        # Squared as it is stored, so that plain and fused agree up to that rounding.
        stored = total.to(before.dtype.element_ty)
        tl.store(before + place, stored, mask=known)
        total = stored.to(tl.float32)
        total = total * total * tl.where(total > 0, 1.0, slope * slope)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=known)


def _product(
    a_MK: Tensor, b_NK: Tensor, before_MN: Tensor, slope: float, *, is_gradient: bool
) -> Tensor:
    """a b^T times f'(before), or f(a b^T) with a b^T written to `before`."""
    (M, K), N = a_MK.shape, b_NK.size(0)
    out_MN = torch.empty_like(before_MN)
    if M:
        _kernel[triton.cdiv(M, TILE_M) * triton.cdiv(N, TILE_N),](
            a_MK, b_NK, before_MN, out_MN, M, N, K, *a_MK.stride(), *b_NK.stride(), slope,
            IS_GRADIENT=is_gradient,
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            TILE_M=TILE_M, TILE_N=TILE_N, TILE_K=TILE_K, TOGETHER=TILES_TOGETHER, **LAUNCH,
        )  # fmt: skip
    return out_MN


@torch.library.custom_op("speedrun::relu2_mlp", mutates_args=())
def fused_mlp(
    x_MC: Tensor, fc_HC: Tensor, proj_CH: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`mlp.relu2_mlp`, and what its gradient reads: x fc^T before and after the activation.

    Shapes
        x_MC     (M, C)  float32, bfloat16 or float16
        fc_HC    (H, C)  the same dtype, as is everything
        proj_CH  (C, H)
        results  (M, C), (M, H), (M, H)
    """
    before_MH = x_MC.new_empty(len(x_MC), len(fc_HC))
    after_MH = _product(x_MC, fc_HC, before_MH, slope, is_gradient=False)
    return after_MH @ proj_CH.mT, before_MH, after_MH


@fused_mlp.register_fake
def _(x_MC: Tensor, fc_HC: Tensor, proj_CH: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    before_MH = x_MC.new_empty(x_MC.size(0), fc_HC.size(0))
    return x_MC.new_empty(x_MC.shape), before_MH, torch.empty_like(before_MH)


@torch.library.custom_op("speedrun::relu2_mlp_gradient", mutates_args=())
def mlp_gradient(
    x_MC: Tensor, fc_HC: Tensor, proj_CH: Tensor, before_MH: Tensor, after_MH: Tensor,
    upstream_MC: Tensor, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients at x, fc and proj: four products, one of which carries the activation."""
    grad_before_MH = _product(upstream_MC, proj_CH.mT, before_MH, slope, is_gradient=True)
    grad_fc_HC, grad_proj_CH = grad_before_MH.mT @ x_MC, upstream_MC.mT @ after_MH
    return grad_before_MH @ fc_HC, grad_fc_HC, grad_proj_CH


@mlp_gradient.register_fake
def _(
    x_MC: Tensor, fc_HC: Tensor, proj_CH: Tensor, before_MH: Tensor, after_MH: Tensor,
    upstream_MC: Tensor, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        x_MC.new_empty(x_MC.shape),
        fc_HC.new_empty(fc_HC.shape),
        proj_CH.new_empty(proj_CH.shape),
    )


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, upstream_MC, *_):
    return *mlp_gradient(*ctx.saved_tensors, upstream_MC, ctx.slope), None


fused_mlp.register_autograd(_backward, setup_context=_keep)
