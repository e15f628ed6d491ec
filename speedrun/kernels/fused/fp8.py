"""The head's product in 8-bit floats, forwards only: gradients stay in the dtype that came in."""

# N rows, C channels, V alphabet

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number that e4m3 holds."""
MULTIPLE = 16
"""Both sides of the weight must be a multiple of this."""


@torch.library.custom_op("speedrun::fp8_product", mutates_args=())
def fp8_product(x_NC: Tensor, weight_VC: Tensor) -> Tensor:
    """x W^T, both rounded to e4m3 with one scale each.

    Shapes
        x_NC       (N, C)  rows of root mean square 1, so that no value exceeds sqrt(C)
        weight_VC  (V, C)  V and C multiples of 16
        result     (N, V)  dtype of x

    Source
        An 8-bit head: modded-nanogpt. Ours measures the weight's largest value in every step.
    """
    x_scale = torch.full((), x_NC.size(1) ** 0.5 / LARGEST, device=x_NC.device)
    w_scale = (weight_VC.abs().amax().float() / LARGEST).clamp_min(1e-12)
    # Rounding may put a value of the norm a hair above sqrt(C), and e4m3 has no infinity to give.
    x8_NC = (x_NC / x_scale).clamp(-LARGEST, LARGEST).to(E4M3)
    w8_VC = (weight_VC / w_scale).clamp(-LARGEST, LARGEST).to(E4M3)
    product: Tensor = torch._scaled_mm(
        x8_NC, w8_VC.mT, scale_a=x_scale, scale_b=w_scale, out_dtype=x_NC.dtype
    )
    return product


@fp8_product.register_fake
def _(x_NC: Tensor, weight_VC: Tensor) -> Tensor:
    return x_NC.new_empty(x_NC.size(0), weight_VC.size(0))


def _backward(ctx, upstream_NV):
    x_NC, weight_VC = ctx.saved_tensors
    return upstream_NV @ weight_VC, upstream_NV.mT @ x_NC


fp8_product.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)
