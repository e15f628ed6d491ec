"""One layer: mix in the first embedding, attend, think."""

# B batch, T tokens, C channels

import torch
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.kernels.rms_norm import mix_and_norm
from speedrun.model.attention import Attention
from speedrun.model.mlp import MLP


class Block(nn.Module):
    """x = mix_0 x + mix_1 x0; x += attn_scale attn(n(x)); x += mlp_scale mlp(n(x)).

    n(x) is the RMS norm, times 1 / sqrt(layer + 1) with `ln_scale`. The mixed stream, not the
    incoming one, is what attention and MLP add to.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        self.attn = Attention(config, is_exclusive=layer >= config.num_layers - config.xsa_layers)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.width))
        self.mlp_scale = nn.Parameter(torch.ones(config.width))
        self.resid_mix = nn.Parameter(
            torch.stack((torch.ones(config.width), torch.zeros(config.width)))
        )

    def forward(self, x_BTC: Tensor, first_BTC: Tensor, rotary: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), one dtype throughout; `first_BTC` is what entered block 0."""
        dtype = x_BTC.dtype
        keep_C, recall_C = self.resid_mix.to(dtype).unbind()
        x_BTC, normed_BTC = mix_and_norm(x_BTC, first_BTC, keep_C, recall_C, self.norm_scale)
        attended_BTC = self.attn(normed_BTC, rotary)
        attn_scale_C = self.attn_scale.to(dtype)
        x_BTC, normed_BTC = mix_and_norm(x_BTC, attended_BTC, None, attn_scale_C, self.norm_scale)
        out_BTC: Tensor = x_BTC + self.mlp_scale.to(dtype) * self.mlp(normed_BTC)
        return out_BTC
