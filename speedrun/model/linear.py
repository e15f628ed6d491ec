"""The bias-free matrix product that every layer uses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T, W of shape (outputs, inputs); kept in float32 and cast to the dtype of x at use.

    The weight is zero until `init.init_weights` draws it, and stays zero where `gain` is 0.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), dtype of x."""
        return F.linear(x, self.matrix(x.dtype))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight as every product takes it: also those that join or fuse several layers."""
        return self.weight.to(dtype)
