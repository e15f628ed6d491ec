"""A transformer with four experts in each block, under bfloat16 autocast.

Each token goes to the one that its router prefers: where two are close, the last digit decides.
"""

import torch
from bf16 import Mixed
from torch import nn
from torch.nn import functional as F
from transformer import Network, restore


class Experts(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.router = nn.Linear(width, 4)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        share, chosen = self.router(x).softmax(dim=-1).max(dim=-1, keepdim=True)
        answers = torch.stack([F.gelu(expert(x)) for expert in self.experts], dim=-2)
        place = chosen[..., None].expand(*x.shape[:-1], 1, x.shape[-1])
        return share * answers.gather(-2, place)[..., 0, :]


class Sparse(Network):
    def __init__(self, vocab_size, context, width):
        super().__init__(vocab_size, context, width)
        for block in self.blocks:
            block.up, block.down = Experts(width), nn.Identity()


def load(arrays):
    return Mixed(restore(arrays, Sparse))
