"""Muon: momentum whose matrix is made orthogonal before it is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speedrun.kernels.newton_schulz import CLASSIC, Coefficients, matmul_dtype, newton_schulz
from speedrun.ranks import Message, Ranks


@dataclass(slots=True)
class _Stack:
    """Matrices of one group and shape, which move together."""

    group: int
    """Place of its group in `param_groups`, whose dicts are others after `load_state_dict`."""
    matrices: list[Tensor]
    share: int
    """Matrices of a rank: the last ones may have fewer, or none."""
    mine: slice
    """Places in `matrices` of those that this rank makes orthogonal."""
    message: Message | None = None
    """The gradients' sum over ranks for `mine`, and zeros beyond the last matrix."""


class Muon(torch.optim.Optimizer):
    """For matrices inside a network; tables, vectors and heads want AdamW.

    Per matrix W (rows, cols) with gradient G: M <- momentum M + G; U = G + momentum M;
    W <- (1 - lr weight_decay) W - lr sqrt(max(1, rows / cols)) orthogonal(U). With
    `normalize_rows` each row of U is divided by its length first.

    Matrices of one shape are orthogonalised together, and with several `ranks` each does its share
    of them: gradients go to the owner of a matrix, where they are summed, and its update comes
    back, as many messages as there are shapes under way at once. A compiled backward pass hands
    over all its gradients when it ends, so there is nothing to overlap with it; AdamW runs while
    they travel, and each shape's orthogonalisation while the next ones do.

    Momentum is kept in full by every rank, though only the owner's part is up to date: see
    `complete_state`. So a state dict is the same for any number of ranks.

    Source
        Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scale and decay as in
        the parameter-golf scripts. Shares: its PR #549, there with momentum rounded to bfloat16.
        Rows: MuonEq-R, its PR #1285.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        coefficients: Coefficients = CLASSIC,
        normalize_rows: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.ranks = ranks or Ranks()
        self._dtype = matmul_dtype(self.param_groups[0]["params"][0].device.type)
        self._how = {
            "steps": steps,
            "dtype": self._dtype,
            "coefficients": coefficients,
            "normalize_rows": normalize_rows,
        }
        self._direction: Callable[..., Tensor] = _direction
        self._apply: Callable[..., None] = _apply
        self._move: Callable[..., None] = _move
        self._stacks = [
            stack
            for number, group in enumerate(self.param_groups)
            for stack in _stacks(number, group["params"], self.ranks)
        ]

    def compile(self) -> None:
        """Compile the arithmetic: one graph, or, as what travels stays outside, two for each shape.

        Functions and not methods, so that the next run in this process finds its graphs.
        """
        self._direction = torch.compile(_direction, fullgraph=True, dynamic=False)
        self._apply = torch.compile(_apply, fullgraph=True, dynamic=False)
        self._move = torch.compile(_move, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def send_gradients(self) -> None:
        """Send each rank the gradients that are its to sum, the largest stack first."""
        for stack in self._stacks:
            grads = [matrix.grad for matrix in stack.matrices if matrix.grad is not None]
            if not grads:
                continue
            assert len(grads) == len(stack.matrices), "some matrices of a shape have no gradient"
            padding = stack.share * self.ranks.world - len(grads)
            grads += [torch.zeros_like(grads[0])] * padding
            stack.message = self.ranks.scatter_sums(torch.stack(grads))

    def gradients(self) -> list[Tensor]:
        """This rank's share of the summed gradients, once they are there; may be scaled in place.

        Every matrix has one owner, so over all ranks these are all the gradients.
        """
        received = []
        for stack in self._stacks:
            if stack.message is not None:
                # Taken out, because gloo writes the result again whenever it is waited for.
                stack.message = Message(stack.message.wait())
                received.append(stack.message.result)
        return received

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient, here and on all other ranks."""
        assert closure is None, "Muon does not evaluate the loss again"
        if all(stack.message is None for stack in self._stacks):
            self.send_gradients()
        if self.ranks.world == 1:
            self._step_alone()
            return
        coming: list[tuple[_Stack, Message]] = []
        for stack in self._stacks:
            if stack.message is None:
                continue
            buffer = self._momentum(stack)[stack.mine]
            grads = stack.message.wait()[: len(buffer)]
            stack.message = None
            # Tensors, because a compiled graph would be compiled anew for every other number.
            if len(buffer):
                momentum = torch.tensor(self.param_groups[stack.group]["momentum"])
                updates = self._direction(grads, buffer, momentum, **self._how)
            else:
                updates = grads.to(self._dtype)
            if padding := stack.share - len(buffer):
                updates = torch.cat((updates, updates.new_zeros(padding, *updates.shape[1:])))
            coming.append((stack, self.ranks.gather(updates)))
        for stack, message in coming:
            self._apply(stack.matrices, message.wait(), *self._rates(stack))

    def _step_alone(self) -> None:
        moving = [(stack, stack.message) for stack in self._stacks if stack.message is not None]
        for stack, _ in moving:
            stack.message = None
        if moving:
            self._move(
                [stack.matrices for stack, _ in moving],
                [message.wait() for _, message in moving],
                [self._momentum(stack) for stack, _ in moving],
                [torch.tensor(self.param_groups[stack.group]["momentum"]) for stack, _ in moving],
                [self._rates(stack) for stack, _ in moving],
                **self._how,
            )

    def _rates(self, stack: _Stack) -> tuple[Tensor, Tensor]:
        """What a stack's matrices and their updates are multiplied by."""
        rows, cols = stack.matrices[0].shape
        group = self.param_groups[stack.group]
        rate = group["lr"]
        keep = torch.tensor(1 - rate * group["weight_decay"])
        return keep, torch.tensor(rate * max(1, rows / cols) ** 0.5)

    def complete_state(self) -> None:
        """Bring momentum up to date on every rank, before the state dict is saved; all must call.

        Alone there is nothing to do.
        """
        if self.ranks.world == 1:
            return
        for stack in self._stacks:
            buffer = self._momentum(stack)
            mine = buffer[stack.mine]
            padded = buffer.new_zeros(stack.share, *buffer.shape[1:])
            padded[: len(mine)] = mine
            buffer.copy_(self.ranks.gather(padded).wait()[: len(buffer)])

    def _momentum(self, stack: _Stack) -> Tensor:
        """(matrices, rows, cols), under the name of the first matrix in the state dict."""
        state = self.state[stack.matrices[0]]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(
                stack.matrices[0].expand(len(stack.matrices), -1, -1),
                memory_format=torch.contiguous_format,
            )
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _direction(
    grads: Tensor,
    buffer: Tensor,
    momentum: Tensor,
    *,
    steps: int,
    dtype: torch.dtype,
    coefficients: Coefficients,
    normalize_rows: bool,
) -> Tensor:
    """Take gradients (n, rows, cols) into their momentum; returns orthogonal updates in `dtype`."""
    updates = _update(grads, buffer, momentum, normalize_rows=normalize_rows)
    return newton_schulz(updates, steps, dtype=dtype, coefficients=coefficients)


def _update(grads: Tensor, buffer: Tensor, momentum: Tensor, *, normalize_rows: bool) -> Tensor:
    """Take gradients (n, rows, cols) into their momentum; returns what is to be orthogonalised."""
    buffer.mul_(momentum).add_(grads)
    updates = grads + momentum * buffer
    if normalize_rows:
        updates = updates / updates.norm(dim=-1, keepdim=True).clamp_min(1e-7)
    return updates


def _move(
    matrices: list[list[Tensor]],
    grads: list[Tensor],
    buffers: list[Tensor],
    momenta: list[Tensor],
    rates: list[tuple[Tensor, Tensor]],
    *,
    steps: int,
    dtype: torch.dtype,
    coefficients: Coefficients,
    normalize_rows: bool,
) -> None:
    """A step of all stacks at once, where nothing travels between its parts.

    The orthogonal factor of a transpose is the transpose, so a tall stack joins the wide one of its
    shape: products of more matrices keep more cores busy.
    """
    wide: dict[tuple[int, ...], list[Tensor]] = {}
    for group, buffer, momentum in zip(grads, buffers, momenta, strict=True):
        update = _update(group, buffer, momentum, normalize_rows=normalize_rows)
        update = update.mT if update.size(1) > update.size(2) else update
        wide.setdefault(tuple(update.shape[1:]), []).append(update)
    joined = {
        shape: newton_schulz(torch.cat(updates), steps, dtype=dtype, coefficients=coefficients)
        for shape, updates in wide.items()
    }
    taken = dict.fromkeys(joined, 0)
    for stack, (keep, rate) in zip(matrices, rates, strict=True):
        rows, cols = stack[0].shape
        shape = (min(rows, cols), max(rows, cols))
        first = taken[shape]
        taken[shape] = first + len(stack)
        updates = joined[shape][first : taken[shape]]
        _apply(stack, updates.mT if rows > cols else updates, keep, rate)


def _apply(matrices: list[Tensor], updates: Tensor, keep: Tensor, rate: Tensor) -> None:
    """matrices <- keep matrices - rate updates; updates (n or more, rows, cols) of any dtype."""
    moves = (updates.to(matrices[0].dtype) * rate).unbind()[: len(matrices)]
    torch._foreach_mul_(matrices, keep)
    torch._foreach_sub_(matrices, moves)


def _stacks(group: int, params: list[Tensor], ranks: Ranks) -> list[_Stack]:
    """A group's matrices by shape, largest stack first, shared among ranks."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in params:
        assert matrix.ndim == 2, f"Muon is for matrices, not {tuple(matrix.shape)}"
        by_shape.setdefault(matrix.shape, []).append(matrix)
    stacks = []
    for matrices in by_shape.values():
        num = len(matrices)
        share = -(-num // ranks.world)
        first = min(ranks.rank * share, num)
        stacks.append(_Stack(group, matrices, share, slice(first, min(first + share, num))))
    return sorted(stacks, key=lambda stack: -stack.matrices[0].numel() * len(stack.matrices))
