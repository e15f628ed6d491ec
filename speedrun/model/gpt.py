"""The network, top to bottom: embed, a U-Net of blocks, head, loss. One device, no cluster.

State-dict names and shapes are those of the parameter-golf scripts: published weights load.
"""

# B batch, T tokens, C channels, V alphabet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.kernels.cross_entropy import softcap, softcap_cross_entropy
from speedrun.kernels.rms_norm import rms_norm
from speedrun.model.block import Block
from speedrun.model.embedding import BigramHash, Embedding, SmearGate
from speedrun.model.linear import Linear
from speedrun.model.positions import rotary_base, rotary_table


class GPT(nn.Module):
    """A decoder-only transformer whose later half reads the earlier half's outputs, last one first.

    Weights are float32; matrices are zero until `init.init_weights` or `load_state_dict`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = Embedding(config.vocab_size, config.width, std=config.embedding_std)
        self.bigram = BigramHash(config) if config.bigram_buckets else None
        self.smear = SmearGate(config) if config.smear else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        # With an odd number of layers the last decoder block finds nothing left to read.
        self.skip_weights = nn.Parameter(torch.ones(config.num_layers // 2, config.width))
        self.lm_head = (
            None if config.tied_embeddings else Linear(config.width, config.vocab_size, gain=0.0)
        )

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Soft-capped logits of each next token.

        Shapes
            ids_BT  (B, T)     int64, 0..V-1
            result  (B, T, V)  float32; softmax of position t predicts token t + 1
        """
        raw_BTV = self.head(self.run_blocks(self.embed(ids_BT)))
        return softcap(raw_BTV.float(), self.config.logit_softcap)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean nats of `targets_BT` (B, T) int64, a float32 scalar."""
        raw_BTV = self.head(self.run_blocks(self.embed(ids_BT)))
        return softcap_cross_entropy(
            raw_BTV.flatten(0, 1), targets_BT.flatten(), self.config.logit_softcap
        )

    def embed(self, ids_BT: Tensor) -> Tensor:
        """What enters the first block: (B, T) int64 -> (B, T, C)."""
        x_BTC: Tensor = self.tok_emb(ids_BT)
        if self.bigram is not None:
            x_BTC = x_BTC + self.bigram(ids_BT)
        x_BTC = rms_norm(x_BTC)
        return x_BTC if self.smear is None else self.smear(x_BTC)

    def run_blocks(self, x_BTC: Tensor) -> Tensor:
        """All layers with their long skips: (B, T, C) -> (B, T, C)."""
        config = self.config
        num_tokens = x_BTC.size(1)
        rotary = rotary_table(
            num_tokens,
            config.rope_dims or config.head_width,
            rotary_base(config, num_tokens),
            x_BTC.device,
        )
        first_BTC = x_BTC
        skips: list[Tensor] = []
        num_encoders = config.num_layers // 2
        for layer, block in enumerate(self.blocks):
            if layer >= num_encoders and skips:
                x_BTC = (
                    x_BTC + self.skip_weights[layer - num_encoders].to(x_BTC.dtype) * skips.pop()
                )
            x_BTC = block(x_BTC, first_BTC, rotary)
            if layer < num_encoders:
                skips.append(x_BTC)
        return x_BTC

    def head(self, x_BTC: Tensor) -> Tensor:
        """Logits before the cap: (B, T, C) -> (B, T, V), dtype of x."""
        weight = self.tok_emb.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(rms_norm(x_BTC), weight.to(x_BTC.dtype))


def count_parameters(config: ModelConfig) -> int:
    """Number of trained values, without reserving memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())
