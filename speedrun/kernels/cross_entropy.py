"""Soft-capped cross-entropy: from raw logits to mean nats."""

# N predictions, C channels, V alphabet

import torch
import torch.nn.functional as F
from torch import Tensor

from speedrun.kernels.choose import is_chosen_to_learn

LARGEST_CAP = 40.0
"""Fused kernels sum exp(logit - cap), which with a larger cap could vanish in float32."""


def softcap(logits_NV: Tensor, cap: float) -> Tensor:
    """Squeeze logits smoothly into (-cap, cap): cap * tanh(logits / cap)."""
    # tanh(x) = 2 sigmoid(2x) - 1: on a CPU a sigmoid takes half the time, and what is lost near
    # zero, some 2e-7 of the cap, float32 would lose in the log-sum anyway.
    return cap * (2 * torch.sigmoid(logits_NV * (2 / cap)) - 1)


def log_probs(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and of each row's likeliest token, which is a constant.

    Shapes
        logits_NV  (N, V)  float32
        targets_N  (N,)    int64, 0..V-1
        results    (N,)    float32 each
    """
    # All that a gradient needs is e^z: compiled in one graph, the backward pass computes no other.
    top_N = logits_NV.detach().amax(1)
    log_total_N = (logits_NV - top_N[:, None]).exp().sum(1).log()
    # A mask and no gather, whose gradient is scattered into as many zeros as there are logits.
    tokens_V = torch.arange(logits_NV.size(1), dtype=torch.int32, device=logits_NV.device)
    is_target_NV = tokens_V == targets_N[:, None].to(torch.int32)
    target_N = torch.where(is_target_NV, logits_NV, 0.0).sum(1)
    return target_N - top_N - log_total_N, -log_total_N.detach()


def softcap_cross_entropy(logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """Mean nats of `targets_N` under softmax(softcap(logits)).

    Shapes
        logits_NV  (N, V)  before the cap, any floating dtype
        targets_N  (N,)    int64, 0..V-1
        result     ()      float32
    """
    if cap <= LARGEST_CAP and is_chosen_to_learn("cross_entropy"):
        from speedrun.kernels.fused.cross_entropy import softcap_nats

        nats_N: Tensor = softcap_nats(logits_NV, targets_N, cap)[0]
        return nats_N.mean()
    return F.cross_entropy(softcap(logits_NV.float(), cap), targets_N)


def softcap_cross_entropy_ref(logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """The same, a target at a time."""
    nats = [
        torch.logsumexp(cap * torch.tanh(row_V / cap), 0) - cap * torch.tanh(row_V[target] / cap)
        for row_V, target in zip(logits_NV.float(), targets_N.tolist(), strict=True)
    ]
    return torch.stack(nats).mean()


def head_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, cap: float
) -> Tensor:
    """`softcap_cross_entropy` of hidden W^T; where it is chosen, a chunk of rows at a time.

    Shapes
        hidden_NC  (N, C)  any floating dtype, in which the product is computed
        weight_VC  (V, C)  any floating dtype
        targets_N  (N,)    int64, 0..V-1
        result     ()      float32
    """
    weight_VC = weight_VC.to(hidden_NC.dtype)
    if cap <= LARGEST_CAP and is_chosen_to_learn("head"):
        from speedrun.kernels.fused.cross_entropy import head_nats

        nats: Tensor = head_nats(hidden_NC, weight_VC, targets_N, cap)[0]
        return nats
    return softcap_cross_entropy(head_product(hidden_NC, weight_VC), targets_N, cap)


def head_product(hidden: Tensor, weight_VC: Tensor) -> Tensor:
    """Raw logits hidden W^T, (..., C) -> (..., V); while learning in 8-bit floats if so chosen."""
    if is_chosen_to_learn("fp8_head"):
        from speedrun.kernels.fused.fp8 import fp8_product

        product: Tensor = fp8_product(hidden.flatten(0, -2), weight_VC)
        return product.view(*hidden.shape[:-1], -1)
    return F.linear(hidden, weight_VC)
