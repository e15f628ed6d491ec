"""Muon: momentum whose matrix is made orthogonal before it is applied."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from speedrun.kernels.newton_schulz import newton_schulz


class Muon(torch.optim.Optimizer):
    """For matrices inside a network; tables, vectors and heads want AdamW.

    Per matrix W (rows, cols) with gradient G: M <- momentum M + G; U = G + momentum M;
    W <- (1 - lr weight_decay) W - lr sqrt(max(1, rows / cols)) orthogonal(U).

    Matrices of one shape are orthogonalised together. Momentum has the gradient's dtype and is in
    the state dict, so training resumes exactly.

    Source
        Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scale and decay as in
        the parameter-golf scripts.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        super().__init__(params, defaults)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            assert parameter.ndim == 2, f"Muon is for matrices, not {tuple(parameter.shape)}"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None, "Muon does not evaluate the loss again"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for matrices in by_shape.values():
                self._update(group, matrices)

    def _update(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix, grad in zip(matrices, grads, strict=True):
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(grad)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        nesterov = torch._foreach_add(grads, buffers, alpha=group["momentum"])
        updates = newton_schulz(torch.stack(nesterov), group["steps"]).to(matrices[0].dtype)
        rows, cols = matrices[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            matrices, updates.unbind(), alpha=-group["lr"] * max(1, rows / cols) ** 0.5
        )
