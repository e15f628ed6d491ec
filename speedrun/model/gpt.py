"""The network, top to bottom: embed, a U-Net of blocks, head, tables, loss. One device, no cluster.

State-dict names and shapes are those of the parameter-golf scripts: published weights load.
"""

# B batch, T tokens, C channels, V alphabet, N asked positions

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speedrun.config import ModelConfig
from speedrun.kernels.cross_entropy import (
    head_cross_entropy,
    head_product,
    softcap,
    softcap_cross_entropy,
)
from speedrun.kernels.rms_norm import rms_norm
from speedrun.model.block import Block
from speedrun.model.embedding import BigramHash, Embedding, SmearGate
from speedrun.model.linear import Linear
from speedrun.model.match import MatchHead, MatchIndex
from speedrun.model.ngram import NgramTable
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
        self.ngram = NgramTable(config) if config.ngram_order else None
        self.match = MatchHead(config) if config.match_order else None

    def forward(self, ids_BT: Tensor, asked_BT: Tensor | None = None) -> Tensor:
        """Logits of the token after each asked position.

        Shapes
            ids_BT    (B, T)  int64, 0..V-1
            asked_BT  (B, T)  bool, True at N positions; without it all are asked
            result    (N, V), or (B, T, V) if all are asked; float32
        """
        asked = torch.ones_like(ids_BT, dtype=torch.bool) if asked_BT is None else asked_BT
        hidden_NC = self._hidden_at(ids_BT, asked)
        logits_NV = softcap(self.head(hidden_NC).float(), self.config.logit_softcap)
        if self.ngram is not None:
            logits_NV = self.ngram(logits_NV, hidden_NC, self.ngram.logits(ids_BT, asked))
        if self.match is not None:
            ids = ids_BT.cpu().numpy()
            # What follows a window's last token is unknown, and no earlier position needs it.
            index = MatchIndex(ids, np.roll(ids, -1, axis=1), self.match.num_lengths)
            chosen = np.flatnonzero(asked.cpu().numpy())
            logits_NV = self.match(logits_NV, hidden_NC, index, chosen)
        return logits_NV if asked_BT is not None else logits_NV.view(*ids_BT.shape, -1)

    @torch.no_grad()
    def read(self, ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, ...]:
        """What the tables and the context say about a batch: facts that `loss` takes as they are.

        Sorting and searching stay outside the compiled graph; without such parts this is empty.
        """
        facts: tuple[Tensor, ...] = ()
        if self.ngram is not None:
            facts += (self.ngram.logits(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)),)
        if self.match is not None:
            ids, targets = ids_BT.cpu().numpy(), targets_BT.cpu().numpy()
            evidence = MatchIndex(ids, targets, self.match.num_lengths).evidence()
            facts += tuple(fact.to(ids_BT.device) for fact in evidence)
        return facts

    def loss(
        self, ids_BT: Tensor, targets_BT: Tensor, *facts: Tensor, recompute: bool = False
    ) -> Tensor:
        """Mean nats of `targets_BT` (B, T) int64, a float32 scalar; `facts` come from `read`.

        With `recompute` each block keeps its input only and runs again in the backward pass.
        """
        length = self.config.block_length or ids_BT.size(1)
        blocks = ids_BT.reshape(-1, length)
        hidden_BTC = self.run_blocks(self.embed(blocks), recompute=recompute)
        hidden_NC = rms_norm(hidden_BTC).flatten(0, 1)
        targets_N, cap = targets_BT.flatten(), self.config.logit_softcap
        if not facts and self.training:
            return head_cross_entropy(hidden_NC, self.head_weight, targets_N, cap)
        raw_NV = self.head(hidden_NC)
        if not facts:
            return softcap_cross_entropy(raw_NV, targets_N, cap)
        logits_NV = softcap(raw_NV.float(), cap)
        if self.ngram is not None:
            counted_NV, *facts_left = facts
            logits_NV = self.ngram(logits_NV, hidden_NC, counted_NV)
            facts = tuple(facts_left)
        if self.match is None:
            return F.cross_entropy(logits_NV, targets_N)
        return self.match.nats(logits_NV, hidden_NC, targets_N, *facts).mean()

    def _hidden_at(self, ids_BT: Tensor, asked_BT: Tensor) -> Tensor:
        """Normalised output of the last block at the asked positions, row by row: (N, C).

        With `block_length`, blocks overlap by half and each position is answered by the block in
        whose later half it lies; blocks without asked positions are not run.
        """
        length, half = self.config.block_length, self.config.block_length // 2
        if not length or ids_BT.size(1) <= length:
            return rms_norm(self.run_blocks(self.embed(ids_BT)))[asked_BT]
        padding = (0, -ids_BT.size(1) % half)
        blocks = F.pad(ids_BT, padding).unfold(1, length, half)
        answers = F.pad(asked_BT, padding).unfold(1, length, half).clone()
        answers[:, 1:, :half] = False
        is_used = answers.any(2)
        hidden_BTC = rms_norm(self.run_blocks(self.embed(blocks[is_used])))
        return hidden_BTC[answers[is_used]]

    def embed(self, ids_BT: Tensor) -> Tensor:
        """What enters the first block: (B, T) int64 -> (B, T, C)."""
        x_BTC: Tensor = self.tok_emb(ids_BT)
        if self.bigram is not None:
            x_BTC = x_BTC + self.bigram(ids_BT)
        x_BTC = rms_norm(x_BTC)
        return x_BTC if self.smear is None else self.smear(x_BTC)

    def run_blocks(self, x_BTC: Tensor, *, recompute: bool = False) -> Tensor:
        """All layers with their long skips: (B, T, C) -> (B, T, C)."""
        config = self.config
        rotary = self.rotary(x_BTC.size(1), x_BTC.device)
        first_BTC = x_BTC
        skips: list[Tensor] = []
        num_encoders = config.num_layers // 2
        for layer, block in enumerate(self.blocks):
            if layer >= num_encoders and skips:
                x_BTC = (
                    x_BTC + self.skip_weights[layer - num_encoders].to(x_BTC.dtype) * skips.pop()
                )
            if recompute:
                x_BTC = checkpoint(block, x_BTC, first_BTC, rotary, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, first_BTC, rotary)
            if layer < num_encoders:
                skips.append(x_BTC)
        return x_BTC

    def rotary(self, num_tokens: int, device: torch.device) -> Tensor:
        """The angles of every layer: see `positions.rotary_table`."""
        config = self.config
        dims = config.rope_dims or config.head_width
        return rotary_table(num_tokens, dims, rotary_base(config, num_tokens), device)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits before the cap: (..., C) normalised -> (..., V), dtype of `hidden`."""
        return head_product(hidden, self.head_weight.to(hidden.dtype))

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V, C), float32; the token embedding where they are tied."""
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight


def count_parameters(config: ModelConfig) -> int:
    """Number of trained values, without reserving memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())
