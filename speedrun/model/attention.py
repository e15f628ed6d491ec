"""Causal self attention: grouped heads, normalised queries and keys, and the exclusive variant."""

# B batch, T tokens, C channels, H query heads, K key and value heads, G = H/K, D head width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.kernels.attention import causal_attention
from speedrun.kernels.exclusive import exclude_own_value
from speedrun.kernels.rms_norm import rms_norm
from speedrun.model.linear import Linear
from speedrun.model.positions import rotate


class Attention(nn.Module):
    """Project, normalise each head of q and k, rotate, scale q by a learned gain, attend, project.

    Query head h reads key and value head h // G. `is_exclusive` removes from each output what it
    shares with the token's own value (`exclude_own_value`).

    Source
        QK norm: Henry et al. 2020, arXiv:2010.04245. GQA: Ainslie et al. 2023, arXiv:2305.13245.
    """

    def __init__(self, config: ModelConfig, *, is_exclusive: bool) -> None:
        super().__init__()
        kv_width = config.num_kv_heads * config.head_width
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.is_exclusive = is_exclusive
        self.c_q = Linear(config.width, config.width)
        self.c_k = Linear(config.width, kv_width)
        self.c_v = Linear(config.width, kv_width)
        self.proj = Linear(config.width, config.width, gain=0.0)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.q_gain))

    def forward(self, x_BTC: Tensor, rotary: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), dtype of x; `rotary` is a `positions.rotary_table` for T."""
        H, K = self.num_heads, self.num_kv_heads
        # One product for three: stored apart as the field names them, joined while they are used.
        layers = (self.c_q, self.c_k, self.c_v)
        joined = torch.cat([layer.matrix(x_BTC.dtype) for layer in layers])
        qkv_BTHD = F.linear(x_BTC, joined).view(*x_BTC.shape[:2], H + 2 * K, -1)
        qk_BTHD, v_BTKD = qkv_BTHD.tensor_split((H + K,), dim=2)
        q_BTHD, k_BTKD = rotate(rms_norm(qk_BTHD), rotary).tensor_split((H,), dim=2)
        q_BTHD = q_BTHD * self.q_gain.to(x_BTC.dtype)[:, None]
        y_BTHD = causal_attention(q_BTHD, k_BTKD, v_BTKD)
        if self.is_exclusive:
            y_BTHD = exclude_own_value(y_BTHD, v_BTKD)
        out: Tensor = self.proj(y_BTHD.flatten(2))
        return out
