"""Root-mean-square norm without a weight, in the dtype that came in."""

# ... any leading axes, C channels

import torch.nn.functional as F
from torch import Tensor

EPSILON = 1.1920928955078125e-07
"""What torch takes by default for float32, and for bfloat16 too; written out so that it stays."""


def rms_norm(x_C: Tensor) -> Tensor:
    """Divide the last axis by its root mean square; `rms_norm_ref` has the mathematics.

    Shapes
        x_C  (..., C)  any floating dtype; the result has the same shape and dtype
    """
    # From torch 2.12 autocast returns float32 here, and the residual stream would follow silently.
    return F.rms_norm(x_C, x_C.shape[-1:], eps=EPSILON).to(x_C.dtype)


def rms_norm_ref(x_C: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps), computed in at least float32."""
    wide_C = x_C if x_C.dtype.itemsize >= 4 else x_C.float()
    return (wide_C / (wide_C.square().mean(-1, keepdim=True) + EPSILON).sqrt()).to(x_C.dtype)
