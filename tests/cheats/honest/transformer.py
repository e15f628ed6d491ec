"""A small transformer in torch, float32: two layers, learnt positions, capped logits."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HEADS = 3
torch.set_num_threads(1)  # so small a network only loses time to more


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.before_mlp(x)))))


class Network(nn.Module):
    def __init__(self, vocab_size, context, width, dropout=0.0):
        super().__init__()
        self.embedding, self.position = (
            nn.Embedding(vocab_size, width),
            nn.Embedding(context, width),
        )
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(2))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocab_size)

    def mask(self, ids):
        """Which positions (B, 1, T, T) may be read; None for all up to the own one."""

    def cap(self, logits):
        return 30 * torch.tanh(logits / 30)

    def forward(self, ids, asked):
        x = self.embedding(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, self.mask(ids))
        return self.cap(self.head(self.last(x)[asked]))


class Transformer:
    kind = "fixed"

    def __init__(self, network):
        self.network = network.eval()
        self.vocab_size = network.embedding.num_embeddings

    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        with torch.inference_mode():
            return self.network(torch.from_numpy(tokens), torch.from_numpy(asked)).float()

    def observe(self, tokens):
        pass


def restore(arrays, make=Network, **options):
    """The network that the arrays belong to."""
    vocab_size, width = arrays["embedding.weight"].shape
    network = make(vocab_size, len(arrays["position.weight"]), width, **options)
    weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    network.load_state_dict(weights)
    return network


def load(arrays):
    return Transformer(restore(arrays))
