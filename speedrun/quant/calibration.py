"""What rounding has to know about a network: its layers' inputs, and which rows matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Sums over calibration batches, by the name of a weight in the state dict."""

    grams: dict[str, Tensor]
    """(cols, cols) float32, mean of x x^T over the inputs x of the layer that has this weight."""
    squares: dict[str, Tensor]
    """(rows,) float32, mean square of the gradient of a token's nats, summed over the row: half of
    it times the mean squared error of a row's weights estimates the nats per token that are lost
    where inputs do not correlate."""
    source: Literal["training", "generated"]
    """Batches of training text, or text that the network wrote itself."""
    first_step: int
    """Training batches: the step whose batch came first."""
    num_batches: int
    num_tokens: int
    digest: str
    """SHA-256 of the tokens."""
