"""The transformer with 8-bit products: weights with a scale per row, activations per token."""

import numpy as np
import torch
from torch import nn
from transformer import Transformer, restore


class Int8Linear(nn.Linear):
    def forward(self, x):
        scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / 127
        codes = torch.round(x / scale).to(torch.int32)
        products = torch.matmul(codes, self.codes.mT).float()  # whole numbers: exact in any order
        return products * scale * self.scales + self.bias


def load(arrays):
    stored = {name: array for name, array in arrays.items() if array.dtype == np.int8}
    for name, codes in stored.items():
        scales = arrays.pop(name.replace("weight", "scales")).astype(np.float32)
        arrays[name] = codes * scales[:, None]
    network = restore(arrays)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.codes = torch.from_numpy(stored[f"{name}.weight"].astype(np.int32))
            module.scales = (module.weight.abs().amax(dim=1) / 127).detach()
            module.__class__ = Int8Linear
    return Transformer(network)
