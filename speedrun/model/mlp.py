"""The two-matrix MLP with a squared activation."""

# B batch, T tokens, C channels

from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.kernels.mlp import relu2_mlp, squared_relu
from speedrun.model.linear import Linear

SLOPES = {"relu2": 0.0, "leaky_relu2": 0.5}
"""What negative inputs are multiplied by before squaring."""


class MLP(nn.Module):
    """proj(f(fc(x))^2), f a ReLU or a leaky ReLU; `proj` starts at zero.

    Source
        Squared ReLU: So et al. 2021, arXiv:2109.08668. Leaky: parameter-golf PR #549.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slope = SLOPES[config.mlp_activation]
        self.fc = Linear(config.width, config.mlp_hidden)
        self.proj = Linear(config.mlp_hidden, config.width, gain=0.0)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), dtype of x."""
        if self.training:
            fc_HC, proj_CH = (layer.matrix(x_BTC.dtype) for layer in (self.fc, self.proj))
            return relu2_mlp(x_BTC, fc_HC, proj_CH, self.slope)
        # By its parts, which calibration watches.
        out: Tensor = self.proj(squared_relu(self.fc(x_BTC), self.slope))
        return out
