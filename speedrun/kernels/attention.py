"""Causal attention, by one of the ways that torch knows on this device."""

# B batch, T tokens, H query heads, K key and value heads, D head width

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from speedrun.kernels.choose import way_to_attend

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "FA3": SDPBackend.FLASH_ATTENTION,
    "FA4": SDPBackend.FLASH_ATTENTION,
}
"""What a way asks of scaled_dot_product_attention. FA3 and FA4 are packages of their own, which
torch puts in the place of its own flash attention (`open_way`)."""

_masks: dict[int, Any] = {}


def causal_attention(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where query head h reads key and value head h // (H/K).

    Shapes
        q_BTHD          (B, T, H, D)  any floating dtype; the result has its shape and dtype
        k_BTKD, v_BTKD  (B, T, K, D)  the same dtype; K divides H
    """
    way = way_to_attend()
    if way == "strips":
        return _attend_in_strips(q_BTHD, k_BTKD, v_BTKD)
    q_BHTD, k_BKTD, v_BKTD = (each.transpose(1, 2) for each in (q_BTHD, k_BTKD, v_BTKD))
    has_groups = q_BHTD.size(1) != k_BKTD.size(1)
    if way == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        mask = _masks[q_BHTD.size(2)]
        y: Any = flex_attention(q_BHTD, k_BKTD, v_BKTD, block_mask=mask, enable_gqa=has_groups)
    else:
        with sdpa_kernel(BACKENDS[way]) if way else nullcontext():
            y = F.scaled_dot_product_attention(
                q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=has_groups
            )
    y_BTHD: Tensor = y.transpose(1, 2)
    return y_BTHD


def open_way(way: str, num_tokens: int, device: torch.device) -> None:
    """Make ready what a way to attend needs outside the graph: a package, or a mask.

    Raises whatever a package that does not fit this machine raises: there is no list of it.
    """
    registry: Any = nn.attention
    if hasattr(registry, "restore_flash_attention_impl"):
        registry.restore_flash_attention_impl(_raise_warn=False)
    if way in ("FA3", "FA4"):
        registry.activate_flash_attention_impl(way)
    if way == "flex" and num_tokens not in _masks:
        from torch.nn.attention.flex_attention import create_block_mask

        def is_earlier(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return query >= key

        _masks[num_tokens] = create_block_mask(
            is_earlier, None, None, num_tokens, num_tokens, str(device)
        )


def _attend_in_strips(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
    """The same with its scores written out: a few large products, and one exponential a score.

    The first half of the queries needs no keys of the second, which saves half of what the mask
    throws away; shorter strips would save more, in products too small to be quick.
    """
    B, T, H, D = q_BTHD.shape
    K, G = k_BTKD.size(2), H // k_BTKD.size(2)
    # Queries that share keys are one matrix, token by token, so that a strip of it is one piece.
    q_NRD = (D**-0.5 * q_BTHD).view(B, T, K, G, D).transpose(1, 2).reshape(B * K, T * G, D)
    k_NTD, v_NTD = (each.transpose(1, 2).reshape(B * K, T, D) for each in (k_BTKD, v_BTKD))
    tokens_T = torch.arange(T, dtype=torch.int32, device=q_BTHD.device)
    strips = []
    for first, last in pairwise(sorted({0, T // 2, T})):
        scores_NRT = (q_NRD[:, first * G : last * G] @ k_NTD[:, :last].mT).float()
        is_future_RT = tokens_T[:last] > tokens_T[first:last].repeat_interleave(G)[:, None]
        scores_NRT = scores_NRT.masked_fill(is_future_RT, -torch.inf)
        shares_NRT = (scores_NRT - scores_NRT.detach().amax(-1, keepdim=True)).exp()
        y_NRD = shares_NRT.to(v_NTD.dtype) @ v_NTD[:, :last]
        strips.append((y_NRD / shares_NRT.sum(-1, keepdim=True)).to(q_BTHD.dtype))
    y_BTHD: Tensor = torch.cat(strips, 1).view(B, K, T, G, D).transpose(1, 2).reshape(B, T, H, D)
    return y_BTHD
