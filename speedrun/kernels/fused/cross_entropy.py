"""Soft-capped cross-entropy that reads raw logits once and never holds them in float32."""

# N predictions, C channels, V alphabet

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_V = 1024
CHUNK_LOGITS = 1 << 26
"""Logits that `head_nats` holds at a time: 128 MiB in bfloat16."""


@triton.jit
def _nats_kernel(raw, targets, nats, log_sums, V, stride, cap, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    raw += row * stride
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        logits = tl.load(raw + at, mask=at < V, other=0.0).to(tl.float32)
        # cap tanh(x / cap) - cap = -2 cap sigmoid(-2 x / cap): never above 0, so the sum needs no
        # maximum first, and what was subtracted cancels in the nats.
        capped = -2 * cap * tl.sigmoid(-2 * logits / cap)
        total += tl.where(at < V, tl.exp(capped), 0.0)
    log_sum = tl.log(tl.sum(total, 0))
    wanted = tl.load(raw + tl.load(targets + row)).to(tl.float32)
    tl.store(log_sums + row, log_sum)
    tl.store(nats + row, log_sum + 2 * cap * tl.sigmoid(-2 * wanted / cap))


@triton.jit
def _gradient_kernel(
    raw, targets, log_sums, upstream, gradient, V, stride, up_stride, cap, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    raw += row * stride
    gradient += row * V
    target = tl.load(targets + row)
    log_sum = tl.load(log_sums + row)
    factor = tl.load(upstream + row * up_stride)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        logits = tl.load(raw + at, mask=at < V, other=0.0).to(tl.float32)
        share = tl.sigmoid(-2 * logits / cap)
        chance = tl.exp(-2 * cap * share - log_sum)
        slope = 4 * share * (1 - share)  # of cap tanh(x / cap)
        found = factor * (chance - tl.where(at == target, 1.0, 0.0)) * slope
        tl.store(gradient + at, found.to(gradient.dtype.element_ty), mask=at < V)


@torch.library.custom_op("speedrun::softcap_nats", mutates_args=())
def softcap_nats(logits_NV: Tensor, targets_N: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Nats of each target under softmax(softcap(logits)), and the log-sums that its gradient reads.

    Shapes
        logits_NV  (N, V)  before the cap, any floating dtype; cap at most `LARGEST_CAP`
        targets_N  (N,)    int64, 0..V-1
        results    (N,)    float32

    Source
        The idea: parameter-golf PR #1787. Ours needs no running maximum, since the cap is one.
    """
    logits_NV = logits_NV.contiguous()
    nats_N = torch.empty(len(logits_NV), device=logits_NV.device)
    log_sums_N = torch.empty_like(nats_N)
    _launch_nats(logits_NV, targets_N, nats_N, log_sums_N, cap)
    return nats_N, log_sums_N


def _launch_nats(logits: Tensor, targets: Tensor, nats: Tensor, sums: Tensor, cap: float) -> None:
    N, V = logits.shape
    if N:
        _nats_kernel[N,](
            logits, targets.contiguous(), nats, sums, V, logits.stride(0), cap, BLOCK=BLOCK_V
        )


@softcap_nats.register_fake
def _(logits_NV: Tensor, targets_N: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    nats_N = logits_NV.new_empty(logits_NV.size(0), dtype=torch.float32)
    return nats_N, torch.empty_like(nats_N)


@torch.library.custom_op("speedrun::softcap_nats_gradient", mutates_args=())
def softcap_nats_gradient(
    logits_NV: Tensor, targets_N: Tensor, log_sums_N: Tensor, upstream_N: Tensor, cap: float
) -> Tensor:
    """Gradient at the raw logits, (N, V) in their dtype; `upstream_N` may be an expanded scalar."""
    logits_NV = logits_NV.contiguous()
    gradient_NV = torch.empty_like(logits_NV)
    _launch_gradient(logits_NV, targets_N, log_sums_N, upstream_N, gradient_NV, cap)
    return gradient_NV


def _launch_gradient(
    logits: Tensor, targets: Tensor, sums: Tensor, upstream: Tensor, gradient: Tensor, cap: float
) -> None:
    N, V = logits.shape
    if N:
        _gradient_kernel[N,](
            logits,
            targets.contiguous(),
            sums,
            upstream,
            gradient,
            V,
            logits.stride(0),
            upstream.stride(0),
            cap,
            BLOCK=BLOCK_V,
        )


@softcap_nats_gradient.register_fake
def _(
    logits_NV: Tensor, targets_N: Tensor, log_sums_N: Tensor, upstream_N: Tensor, cap: float
) -> Tensor:
    return torch.empty_like(logits_NV, memory_format=torch.contiguous_format)


def _keep_nats(ctx, inputs, output) -> None:
    logits_NV, targets_N, ctx.cap = inputs
    ctx.save_for_backward(logits_NV, targets_N, output[1])
    ctx.mark_non_differentiable(output[1])


def _nats_backward(ctx, upstream_N, _):
    logits_NV, targets_N, log_sums_N = ctx.saved_tensors
    gradient = softcap_nats_gradient(logits_NV, targets_N, log_sums_N, upstream_N, ctx.cap)
    return gradient, None, None


softcap_nats.register_autograd(_nats_backward, setup_context=_keep_nats)


@torch.library.custom_op("speedrun::head_nats", mutates_args=())
def head_nats(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean nats of softcap(hidden W^T), with gradients at hidden and W; few logits exist at a time.

    Each chunk of rows goes through its product, its loss and its gradient while it is there: the
    backward pass only scales. Memory is that of a chunk, products are as many as without.

    Shapes
        hidden_NC  (N, C)  any floating dtype
        weight_VC  (V, C)  the same dtype
        results    (), (N, C), (V, C)  float32, and twice the dtype that came in

    Source
        Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989.
    """
    N, V = len(hidden_NC), len(weight_VC)
    rows = max(CHUNK_LOGITS // V, 1)
    nats_N = torch.empty(N, device=hidden_NC.device)
    upstream = torch.full((1,), 1 / max(N, 1), device=hidden_NC.device)
    grad_hidden_NC = torch.empty_like(hidden_NC)
    grad_weight_VC = torch.zeros_like(weight_VC, dtype=torch.float32)
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        hidden, targets, nats = hidden_NC[part], targets_N[part], nats_N[part]
        logits = hidden @ weight_VC.mT
        sums = torch.empty_like(nats)
        _launch_nats(logits, targets, nats, sums, cap)
        # In place: each element is read before it is written, by the same program.
        _launch_gradient(logits, targets, sums, upstream.expand(len(nats)), logits, cap)
        torch.mm(logits, weight_VC, out=grad_hidden_NC[part])
        grad_weight_VC += logits.mT @ hidden
    return nats_N.mean(), grad_hidden_NC, grad_weight_VC.to(weight_VC.dtype)


@head_nats.register_fake
def _(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    nats = hidden_NC.new_empty((), dtype=torch.float32)
    return nats, torch.empty_like(hidden_NC), torch.empty_like(weight_VC)


def _keep_gradients(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _scale_gradients(ctx, upstream, *_):
    return *((saved * upstream).to(saved.dtype) for saved in ctx.saved_tensors), None, None


head_nats.register_autograd(_scale_gradients, setup_context=_keep_gradients)
