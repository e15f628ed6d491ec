"""Causal attention, by one of the ways that torch knows on this device."""

# B batch, T tokens, H query heads, K key and value heads, D head width

from contextlib import nullcontext
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
