"""Root-mean-square norm without a weight, alone and after a mix of two streams."""

# ... any leading axes, C channels

import torch.nn.functional as F
from torch import Tensor

from speedrun.kernels.choose import is_chosen_to_learn

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


def mix_and_norm(
    x_C: Tensor, other_C: Tensor, keep_C: Tensor | None, take_C: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """keep x + take other, and that sum's norm times `scale`: what every half of a block reads.

    Shapes
        x_C, other_C    (..., C)  one floating dtype, which both results have
        keep_C, take_C  (C,)      the same dtype; without `keep_C` x is kept as it is
    """
    if is_chosen_to_learn("mixed_norm"):
        from speedrun.kernels.fused.mixed_norm import mixed_norm

        return mixed_norm(x_C, other_C, keep_C, take_C, scale)
    kept_C = x_C if keep_C is None else keep_C * x_C
    mixed_C = kept_C + take_C * other_C
    return mixed_C, rms_norm(mixed_C) * scale if scale != 1 else rms_norm(mixed_C)
