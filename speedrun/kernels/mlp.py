"""Two matrix products with a squared (leaky) ReLU between them."""

# ... any leading axes, C channels, H hidden channels

import torch.nn.functional as F
from torch import Tensor

from speedrun.kernels.choose import is_chosen_to_learn


def relu2_mlp(x_C: Tensor, fc_HC: Tensor, proj_CH: Tensor, slope: float) -> Tensor:
    """f(x fc^T)^2 proj^T, f a ReLU that lets `slope` of what is negative through.

    Shapes
        x_C      (..., C)  any floating dtype; the result has the same shape and dtype
        fc_HC    (H, C)    the same dtype
        proj_CH  (C, H)    the same dtype

    Source
        Squared ReLU: So et al. 2021, arXiv:2109.08668. Leaky: parameter-golf PR #549.
    """
    if is_chosen_to_learn("mlp"):
        from speedrun.kernels.fused.mlp import fused_mlp

        y_C: Tensor = fused_mlp(x_C.flatten(0, -2), fc_HC, proj_CH, slope)[0]
        return y_C.view(x_C.shape)
    return F.linear(squared_relu(F.linear(x_C, fc_HC), slope), proj_CH)


def squared_relu(hidden: Tensor, slope: float) -> Tensor:
    """(h > 0 ? h : slope h)^2."""
    return (F.leaky_relu(hidden, slope) if slope else F.relu(hidden)).square()
