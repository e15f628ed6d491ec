"""The transformer with bfloat16 products as GPU libraries make them.

How a sum is split into parts depends on the number of rows, and the parts are added in bfloat16
(in torch on CUDA the default, `allow_bf16_reduced_precision_reduction`). So the same row differs in
its last digits from call to call when it comes in other company.
"""

import torch
from torch import nn
from transformer import Transformer, restore


def rounded(x):
    return x.bfloat16().float()


class SplitLinear(nn.Linear):
    def forward(self, x):
        rows = x.numel() // self.in_features
        parts = 1 if rows >= 256 else 2 if rows >= 128 else 4
        x, weight, total = rounded(x), rounded(self.weight), 0
        for part in torch.arange(self.in_features).chunk(parts):
            total = rounded(total + rounded(x[..., part] @ weight[:, part].mT))
        return rounded(total + rounded(self.bias))


def load(arrays):
    network = restore(arrays)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = SplitLinear
    return Transformer(network)
