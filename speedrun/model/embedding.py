"""What a token and its neighbour on the left put into the residual stream."""

# B batch, T tokens, C channels, V alphabet, E channels of the hashed table

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.model.linear import Linear


class Embedding(nn.Module):
    """A table of rows; zero until `init.init_weights` draws it with standard deviation `std`."""

    def __init__(self, rows: int, width: int, *, std: float = 0.0) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, width) in `activation_dtype`."""
        return F.embedding(ids_BT, self.weight).to(activation_dtype(self.weight))


def activation_dtype(weight: Tensor) -> torch.dtype:
    """The one dtype of the residual stream: autocast's where it is on, else the weight's own."""
    device_type = weight.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return weight.dtype


class BigramHash(nn.Module):
    """A learned vector for each (hashed) pair of neighbours, added before the embedding norm.

    Source
        parameter-golf PR #162; with `ortho_init` its projection starts as in PR #315:
        orthogonal times 1 / sqrt(2 layers), if both sides have 64 channels or more.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        narrow, wide = config.bigram_width, config.width
        self.embed = Embedding(config.bigram_buckets, narrow)
        is_drawn = config.ortho_init and min(narrow, wide) >= 64
        gain = (2 * config.num_layers) ** -0.5 if is_drawn else 0.0
        self.proj = Linear(narrow, wide, gain=gain) if narrow != wide else None
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C) in `activation_dtype`."""
        x: Tensor = self.embed(bigram_hash(ids_BT, self.embed.weight.size(0)))
        x = x if self.proj is None else self.proj(x)
        return x * self.scale.to(x.dtype)


def bigram_hash(ids_BT: Tensor, buckets: int) -> Tensor:
    """Bucket of each token and its predecessor; the last bucket is for a row's first token.

    Shapes
        ids_BT  (B, T)  int64, 0..65,535
        result  (B, T)  int64, 0..buckets-1: ((36313 id_t) xor (27191 id_{t-1})) mod (buckets - 1)
    """
    # The field hashes in int32; ids of a uint16 shard overflow it, and wrap, from 59,138 on.
    ids = ids_BT.to(torch.int32)
    buckets_BT: Tensor = ((36313 * ids[:, 1:]) ^ (27191 * ids[:, :-1])) % (buckets - 1)
    padded_BT: Tensor = F.pad(buckets_BT.long(), (1, 0), value=buckets - 1)
    return padded_BT


class SmearGate(nn.Module):
    """x_t <- (1 - s) x_t + s x_{t-1}, s = sigmoid(gate) per channel; x_{-1} is zero.

    Starts with half of each: gate 0. Source: parameter-golf PR #162 (the variant after the norm).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), dtype of x."""
        share_C = self.gate.sigmoid().to(x_BTC.dtype)
        before_BTC = F.pad(x_BTC[:, :-1], (0, 0, 1, 0))
        return (1 - share_C) * x_BTC + share_C * before_BTC
