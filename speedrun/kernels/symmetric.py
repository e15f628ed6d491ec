"""X X^T, of which a half need not be computed."""

# ... any leading axes, R rows, C columns

import torch
from torch import Tensor

from speedrun.kernels.choose import is_chosen


def gram(x_RC: Tensor) -> Tensor:
    """X X^T of every matrix, (N, R, C) -> (N, R, R); not differentiable where it is fast."""
    if is_chosen("symmetric"):
        from speedrun.kernels.fused.symmetric import symmetric_product

        product: Tensor = symmetric_product(x_RC, None, 1.0, 0.0)
        return product
    return x_RC @ x_RC.mT


def squared_gram(gram_RR: Tensor, once: float, twice: float) -> Tensor:
    """once A + twice A A for symmetric matrices A, (N, R, R) -> (N, R, R)."""
    if is_chosen("symmetric"):
        from speedrun.kernels.fused.symmetric import symmetric_product

        product: Tensor = symmetric_product(gram_RR, gram_RR, twice, once)
        return product
    return torch.baddbmm(gram_RR, gram_RR, gram_RR, beta=once, alpha=twice)
