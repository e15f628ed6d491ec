"""Exclusive self attention: outputs without what they share with the token's own value."""

# B batch, T tokens, H query heads, K value heads, G = H/K, D head width

import torch.nn.functional as F
from torch import Tensor

from speedrun.kernels.choose import is_chosen_to_learn


def exclude_own_value(y_BTHD: Tensor, v_BTKD: Tensor) -> Tensor:
    """Remove from each head's output its component along the token's own value.

    Shapes
        y_BTHD  (B, T, H, D)  attention output; the result has its shape and dtype
        v_BTKD  (B, T, K, D)  values as attended to: neither normalised nor rotated

    Source
        Exclusive self attention: arXiv:2603.09078, as in parameter-golf PR #265.
    """
    if is_chosen_to_learn("exclusive"):
        from speedrun.kernels.fused.exclusive import exclude

        left_BTHD: Tensor = exclude(y_BTHD, v_BTKD)
        return left_BTHD
    y_BTKGD = y_BTHD.view(*v_BTKD.shape[:3], -1, v_BTKD.size(3))
    u_BTK1D = F.normalize(v_BTKD, dim=-1, eps=1e-12).to(y_BTHD.dtype).unsqueeze(3)
    shared_BTKG1 = (y_BTKGD * u_BTK1D).sum(-1, keepdim=True).to(y_BTHD.dtype)
    return (y_BTKGD - shared_BTKG1 * u_BTK1D).view_as(y_BTHD)
