"""X X^T by its lower half: each tile below the diagonal is computed once and written twice."""

# N matrices, R rows, C columns

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, TILE_C, GROUP_WARPS = 64, 64, 4


@triton.jit
def _kernel(
    x, added, out, R, C, x_n, x_r, x_c, alpha, beta, HAS_ADDED: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    down, across, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if across > down:
        return
    x += matrix * x_n
    out += matrix * R * R
    rows = down * TILE + tl.arange(0, TILE)
    columns = across * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, C, TILE_C):
        inner = start + tl.arange(0, TILE_C)
        left = tl.load(
            x + rows[:, None] * x_r + inner[None, :] * x_c,
            mask=(rows < R)[:, None] & (inner < C)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            x + columns[None, :] * x_r + inner[:, None] * x_c,
            mask=(columns < R)[None, :] & (inner < C)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(left, right, total, input_precision=PRECISION)
    total *= alpha
    place = rows[:, None] * R + columns[None, :]
    known = (rows < R)[:, None] & (columns < R)[None, :]
    if HAS_ADDED:
        total += beta * tl.load(added + matrix * R * R + place, mask=known, other=0.0).to(
            tl.float32
        )
    found = total.to(out.dtype.element_ty)
    tl.store(out + place, found, mask=known)
    if across < down:
        mirrored = columns[:, None] * R + rows[None, :]
        known = (columns < R)[:, None] & (rows < R)[None, :]
        tl.store(out + mirrored, tl.trans(found), mask=known)


@torch.library.custom_op("speedrun::symmetric_product", mutates_args=())
def symmetric_product(x_NRC: Tensor, added_NRR: Tensor | None, alpha: float, beta: float) -> Tensor:
    """alpha X X^T + beta A for every matrix, A symmetric; not differentiable.

    Symmetric to the bit, but for tiles on the diagonal: a device may order their sums as it likes.

    Shapes
        x_NRC      (N, R, C)  float32, bfloat16 or float16, any strides
        added_NRR  (N, R, R)  the same dtype
        result     (N, R, R)  the same dtype, contiguous

    Source
        The idea: Newton-Schulz with symmetric products, as in modded-nanogpt and FlashMuon.
    """
    N, R, C = x_NRC.shape
    out_NRR = x_NRC.new_empty(N, R, R)
    added = out_NRR if added_NRR is None else added_NRR.contiguous()
    side = triton.cdiv(R, TILE)
    # As torch multiplies float32: exactly, unless it was told otherwise.
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    if N and R:
        _kernel[side, side, N](
            x_NRC, added, out_NRR, R, C, *x_NRC.stride(), alpha, beta,
            HAS_ADDED=added_NRR is not None, PRECISION=precision, TILE=TILE, TILE_C=TILE_C,
            num_warps=GROUP_WARPS,
        )  # fmt: skip
    return out_NRR


@symmetric_product.register_fake
def _(x_NRC: Tensor, added_NRR: Tensor | None, alpha: float, beta: float) -> Tensor:
    N, R, _ = x_NRC.shape
    return x_NRC.new_empty(N, R, R)
