"""Soft-capped cross-entropy: from raw logits to mean nats."""

# N predictions, V alphabet

import torch
import torch.nn.functional as F
from torch import Tensor


def softcap(logits_NV: Tensor, cap: float) -> Tensor:
    """Squeeze logits smoothly into (-cap, cap): cap * tanh(logits / cap)."""
    return cap * torch.tanh(logits_NV / cap)


def softcap_cross_entropy(logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """Mean nats of `targets_N` under softmax(softcap(logits)).

    Shapes
        logits_NV  (N, V)  before the cap, any floating dtype
        targets_N  (N,)    int64, 0..V-1
        result     ()      float32
    """
    return F.cross_entropy(softcap(logits_NV.float(), cap), targets_N)


def softcap_cross_entropy_ref(logits_NV: Tensor, targets_N: Tensor, cap: float) -> Tensor:
    """The same, a target at a time."""
    nats = [
        torch.logsumexp(cap * torch.tanh(row_V / cap), 0) - cap * torch.tanh(row_V[target] / cap)
        for row_V, target in zip(logits_NV.float(), targets_N.tolist(), strict=True)
    ]
    return torch.stack(nats).mean()
