"""Fill a cap: choose the step of every row and column so that the least loss fits the bytes.

The loss that rounding adds is estimated from a `Calibration`, the bytes from the entropy of codes;
between the two a Lagrange multiplier chooses the steps of each tensor. Real bytes have the last
word: everything is rounded and compressed again until the file is just below the cap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedrun.config import QuantConfig
from speedrun.errors import PackError, QuantError
from speedrun.pack.weights import (
    FINE_STEPS,
    LARGEST_FINE,
    Rounded,
    Rows,
    round_weights,
    write_weights,
)
from speedrun.quant.balance import Balance, balance, on_grid, spread
from speedrun.quant.calibration import Calibration
from speedrun.quant.gptq import Feedback, feedback_of, gptq_rows, one_thread
from speedrun.quant.low_rank import low_rank
from speedrun.quant.rows import codes_of, is_rounded, max_code

FILLED = 0.998
"""Share of the cap that ends the search."""
FULL = 0.995
"""Share of the cap that counts as used."""
_TRIES = 30
_JUMP = 2e-4  # octaves of all steps: a size that changes here does so at once
_MIXES = 10
_SPREADS = (0.15, 0.4, 0.05, 0.25, 0.1, 0.6, 0.8)  # octaves between mixed factors and their mean
_MULTIPLES = tuple(2 ** (k / 2) for k in range(-40, 41))  # of steps that cost one unit of loss
_SAMPLE_ROWS = 192  # of a tensor, for estimates
SCALE_MULTIPLES = (0.8, 0.87, 0.94, 1.07, 1.15, 1.25, 1.4)
"""What GPTQ also tries, times the scale that is best for the weights of a row."""
_LARGEST_COARSE = 127
_WIDEST = 2.1  # times a row's largest weight: it rounds the whole row to zero
_LEAST_BITS = 1.0  # per weight: a network of fewer is better made smaller

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A packed file and how it came to its size."""

    data: bytes
    rounded: Rounded
    loss: float
    """Nats per token that rounding is estimated to add; squared weights without a calibration."""
    is_full: bool
    """Whether the cap is used; if not, every row has the finest step that its codes allow."""
    tries: int
    """Times that everything was rounded and compressed."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A tensor to round, its columns already divided by their scales."""

    name: str
    shape: tuple[int, ...]
    weight: Tensor
    exact: Tensor
    balance: Balance
    feedback: Feedback | None
    gram: Tensor | None
    largest: Tensor
    """(rows,) largest magnitude of each row, float64."""

    def steps(self, multiple: float | Tensor) -> Tensor:
        """Scales of the rows, float16: never so fine that a code would have to be clipped."""
        wanted = torch.minimum(self.balance.steps * multiple, self.largest * _WIDEST)
        finest = on_grid(self.largest / LARGEST_FINE, 1.0)
        return torch.maximum(on_grid(wanted, spread(len(wanted))), finest)

    def is_finest(self, multiple: float) -> bool:
        """Whether smaller steps than these would clip codes in every row."""
        return bool((self.balance.steps * multiple <= self.largest / LARGEST_FINE).all())


def fit_weights(
    weights: dict[str, Tensor],
    quant: QuantConfig,
    meta: dict[str, Any],
    *,
    cap_bytes: int,
    calibration: Calibration | None = None,
) -> Fitted:
    """Pack weights into at most `cap_bytes` less the margin, with the least estimated loss.

    The same arguments give the same bytes, whatever the number of threads.

    Raises
        PackError: a tensor has no place in the file, or the cap leaves less than a bit for each
            weight; it says how small a file is possible and what to change.
    """
    with one_thread():
        small = {name: weight for name, weight in weights.items() if not is_rounded(weight, quant)}
        fixed = round_weights(small, quant)
        matrices = _matrices(weights, quant, calibration)
        search = _Search(matrices, fixed, quant, meta, cap_bytes - quant.margin_bytes)
        search.run()
        data, rounded = search.found
        loss = sum(
            matrix_loss(matrix.name, rows.weights() - weights[matrix.name].cpu(), calibration)
            for matrix in matrices
            if isinstance(rows := rounded[matrix.name], Rows)
        )
    return Fitted(
        data=data,
        rounded=rounded,
        loss=loss,
        is_full=len(data) >= FULL * search.cap_bytes,
        tries=search.tries,
    )


def round_with_gptq(
    weights: dict[str, Tensor],
    quant: QuantConfig,
    calibration: Calibration,
    multiples: Sequence[float] = SCALE_MULTIPLES,
) -> Rounded:
    """Round as `round_weights` does, but choose codes by GPTQ where a layer's inputs are known.

    Each row takes the multiple of its scale that leaves its outputs nearest to what they were: a
    few directions carry most of the inputs, and it is chance how well codes of one scale can meet
    them. On tied embeddings that leaves a fifth of the error of the scale that is best for weights.

    Raises
        PackError: a tensor has no place in the file, or its gram is broken.
    """
    rounded = round_weights(weights, quant)
    with one_thread():
        for name, rows in rounded.items():
            gram = calibration.grams.get(name)
            if not isinstance(rows, Rows) or rows.codes.ndim != 2 or gram is None or rows.bits < 2:
                continue
            weight = weights[name].detach().to("cpu", torch.float32)
            try:
                feedback = feedback_of(gram)
                tried = [
                    (scales, gptq_rows(weight, scales, feedback, largest=max_code(rows.bits)))
                    for scales in _multiples_of(rows.scales, multiples)
                ]
            except QuantError as error:
                raise PackError(f"weight {name!r}: {error}") from error
            energies = []
            for scales, codes in tried:
                off = (codes * scales.float()[:, None] - weight).double()
                energies.append(((off @ gram.double()) * off).sum(1))
            best = torch.stack(energies).argmin(0)  # the first of equals
            row = torch.arange(len(best))
            scales, codes = (torch.stack(parts)[best, row] for parts in zip(*tried, strict=True))
            rounded[name] = rows._replace(codes=codes, scales=scales)
    return rounded


def _multiples_of(scales: Tensor, multiples: Sequence[float]) -> list[Tensor]:
    """Scales to try: the given ones first, which stay where nothing is better; float16."""
    finite = torch.finfo(torch.float16)
    others = [
        (scales.float() * multiple).clamp(finite.smallest_normal, finite.max).to(torch.float16)
        for multiple in multiples
    ]
    return [scales, *others]


def matrix_loss(name: str, error: Tensor, calibration: Calibration | None) -> float:
    """Nats per token that an error is expected to cost: second order, this tensor alone.

    Without a calibration the squared error.

    Shapes
        error  (..., rows, cols)  rounded minus exact
    """
    matrix = error.detach().reshape(-1, error.shape[-1]).double()
    gram = calibration.grams.get(name) if calibration else None
    squares = calibration.squares.get(name) if calibration else None
    if calibration is None:
        return float(matrix.square().sum())
    if squares is None:  # nothing is known, so nothing is claimed
        return 0.0
    energy = matrix.square().sum(1) if gram is None else ((matrix @ gram.double()) * matrix).sum(1)
    trace = matrix.shape[1] if gram is None else float(gram.diagonal().double().sum())
    return 0.5 * float(squares.flatten().double() @ energy) / trace if trace else 0.0


def _matrices(
    weights: dict[str, Tensor], quant: QuantConfig, calibration: Calibration | None
) -> list[_Matrix]:
    shared: dict[int, Feedback] = {}
    found = []
    for name, tensor in sorted(weights.items()):
        if not is_rounded(tensor, quant):
            continue
        exact = tensor.detach().to("cpu", torch.float32).reshape(-1, tensor.shape[-1])
        if not bool(exact.isfinite().all()):
            raise PackError(f"weight {name!r} holds NaN or infinity, which cannot be packed")
        gram = calibration.grams.get(name) if calibration and tensor.ndim == 2 else None
        squares = calibration.squares.get(name) if calibration else None
        feedback, trace = None, float(exact.shape[1])
        if gram is not None:
            try:
                if id(gram) not in shared:
                    shared[id(gram)] = feedback_of(gram)
            except QuantError as error:
                raise PackError(f"weight {name!r}: {error}") from error
            feedback, trace = shared[id(gram)], float(gram.diagonal().double().sum())
        balanced = balance(len(exact), feedback, trace=trace, squares=squares)
        weight = exact
        if feedback is not None:
            columns = balanced.columns.double()
            weight = (exact.double() / columns).float()
            # What passes errors on between columns that are divided by their scales.
            feedback = Feedback(feedback.order, feedback.factor / columns[feedback.order])
        largest = weight.abs().amax(1).double().clamp_min(1e-12)
        found.append(
            _Matrix(name, tuple(tensor.shape), weight, exact, balanced, feedback, gram, largest)
        )
    return found


class _Search:
    """One search for the steps that fill a cap."""

    def __init__(
        self,
        matrices: list[_Matrix],
        fixed: Rounded,
        quant: QuantConfig,
        meta: dict[str, Any],
        cap_bytes: int,
    ) -> None:
        self.matrices, self.fixed, self.quant, self.meta = matrices, fixed, quant, meta
        self.cap_bytes = cap_bytes
        self.num_weights = sum(matrix.weight.numel() for matrix in matrices)
        self.tries = 0
        self.multiples = [1.0] * len(matrices)
        self.price = 0.0
        """Nats that one more bit saves."""
        self._found: tuple[bytes, Rounded] | None = None
        self._last: tuple[float, int] | None = None

    @property
    def found(self) -> tuple[bytes, Rounded]:
        """The largest file below the cap, and what is in it."""
        assert self._found is not None
        return self._found

    def run(self) -> None:
        """Find the steps; PackError if the cap is too small for them."""
        fixed_bytes = len(write_weights(self.fixed, self.quant.codec, self.meta))
        least_bytes = fixed_bytes + math.ceil(self.num_weights * _LEAST_BITS / 8)
        if least_bytes > self.cap_bytes:
            raise self._too_large(fixed_bytes, least_bytes)
        self._choose(8.0 * (self.cap_bytes - fixed_bytes))
        # Sizes fall as the factor grows: (log2 factor, bytes) on either side of the cap.
        over: tuple[float, int] | None = None
        under: tuple[float, int] | None = None
        at, smallest = 0.0, math.inf
        while self.tries < _TRIES:
            self.tries += 1
            found = self._pack(2**at)
            size = len(found[0])
            smallest = min(smallest, size)
            if size <= self.cap_bytes:
                under = (at, size)
                if self._found is None or size > len(self._found[0]):
                    self._found = found
                if size >= FILLED * self.cap_bytes or self._is_finest(2**at):
                    break
            else:
                over = (at, size)
            if over and under and abs(over[0] - under[0]) < _JUMP:
                self._mix(at)
                break
            at = self._next(at, size, over, under)
        if self._found is None:
            raise self._too_large(fixed_bytes, int(smallest))

    def _next(
        self,
        at: float,
        size: int,
        over: tuple[float, int] | None,
        under: tuple[float, int] | None,
    ) -> float:
        """Where the size should lie in the middle of what is accepted."""
        wanted = self.cap_bytes * (1 + FILLED) / 2
        if over is None or under is None:
            # One bit per weight for each doubling, as long as codes have several; less where
            # rows are at their finest steps, which two sizes tell.
            slope = self.num_weights / 8
            if self._last is not None and self._last[0] != at:
                seen = (self._last[1] - size) / (at - self._last[0])
                slope = min(max(seen, slope / 16), slope)
            self._last = (at, size)
            step = (size - wanted) / max(slope, 1.0)
            return at + math.copysign(min(max(abs(step), 0.002), 2.0), step)
        share = (over[1] - wanted) / (over[1] - under[1])
        # Later every other time in the middle, so that one far end cannot hold up the search.
        halve = self.tries > 6 and self.tries % 2
        share = 0.5 if halve else min(max(share, 0.02), 0.98)
        return over[0] + share * (under[0] - over[0])

    def _mix(self, at: float) -> None:
        """Give the first rows of every matrix a finer factor, and the others a coarser one.

        The size of a small file jumps where the coder's tables change, and the cap may lie in the
        jump; how many rows have which factor is another way to move, with jumps elsewhere.
        """
        for apart in _SPREADS:
            low, high = 0.0, 1.0
            for _ in range(_MIXES):
                self.tries += 1
                share = (low + high) / 2
                found = self._pack(2 ** (at - apart), 2 ** (at + apart), share)
                size = len(found[0])
                low, high = (low, share) if size > self.cap_bytes else (share, high)
                if size <= self.cap_bytes and (self._found is None or size > len(self._found[0])):
                    self._found = found
                    if size >= FILLED * self.cap_bytes:
                        return
            if self._found and len(self._found[0]) >= FULL * self.cap_bytes:
                return

    def _pack(
        self, factor: float, coarser: float = 1.0, finer_share: float = 1.0
    ) -> tuple[bytes, Rounded]:
        rounded = dict(self.fixed)
        for matrix, multiple in zip(self.matrices, self.multiples, strict=True):
            factors = torch.full((len(matrix.weight),), multiple * factor, dtype=torch.float64)
            factors[math.ceil(finer_share * len(factors)) :] = multiple * coarser
            rounded[matrix.name] = self._round(matrix, factors)
        return write_weights(rounded, self.quant.codec, self.meta), rounded

    def _round(self, matrix: _Matrix, multiples: Tensor) -> Rows:
        scales = matrix.steps(multiples)
        columns = None if matrix.feedback is None else matrix.balance.columns
        if matrix.feedback is None:
            codes = codes_of(matrix.weight, scales.float(), LARGEST_FINE).to(torch.int16)
        else:
            codes = gptq_rows(matrix.weight, scales, matrix.feedback, largest=LARGEST_FINE)
        largest = int(codes.abs().max()) if codes.numel() else 0
        if largest <= _LARGEST_COARSE:
            codes = codes.to(torch.int8)
        bits = largest.bit_length() + 1
        rows = Rows(codes.view(matrix.shape), scales.view(matrix.shape[:-1]), bits, columns)
        return self._corrected(matrix, rows) if self.quant.correction_rank else rows

    def _corrected(self, matrix: _Matrix, rows: Rows) -> Rows:
        """Add factors if they save more loss than their bits would save elsewhere."""
        rank = min(self.quant.correction_rank, *matrix.exact.shape)
        if len(matrix.shape) != 2:
            return rows
        residual = matrix.exact - rows.weights()
        factors = low_rank(residual, rank, gram=matrix.gram)
        saved = self._cost(matrix, residual) - self._cost(matrix, residual - factors.product())
        if saved <= self.price * 4 * rank * sum(matrix.shape):
            return rows
        return rows._replace(factors=factors._asdict())

    def _cost(self, matrix: _Matrix, error: Tensor) -> float:
        error = error.double()
        gram = matrix.gram
        energy = error.square() if gram is None else (error @ gram.double()) * error
        return float(matrix.balance.rows_cost @ energy.sum(1))

    def _is_finest(self, factor: float) -> bool:
        return all(
            matrix.is_finest(multiple * factor)
            for matrix, multiple in zip(self.matrices, self.multiples, strict=True)
        )

    def _choose(self, budget_bits: float) -> None:
        """Multiples with the least estimated loss among those within the budget."""
        if not self.matrices:
            return
        curves = [_curve(matrix) for matrix in self.matrices]
        bits = np.array([curve[0] for curve in curves])
        losses = np.array([curve[1] for curve in curves])
        low, high = -100.0, 60.0  # log2 of the price
        for _ in range(60):
            price = (low + high) / 2
            chosen = (losses + 2.0**price * bits).argmin(1)
            fits = bits[np.arange(len(bits)), chosen].sum() <= budget_bits
            low, high = (low, price) if fits else (price, high)
        chosen = (losses + 2.0**high * bits).argmin(1)
        self.price = 2.0**high
        self.multiples = [_MULTIPLES[k] for k in chosen]

    def _too_large(self, fixed_bytes: int, least_bytes: int) -> PackError:
        room = max(self.cap_bytes - fixed_bytes, 0) * 8
        return PackError(
            f"{self.num_weights:,} weights need {least_bytes:,} bytes even at {_LEAST_BITS:g} bit "
            f"each, the cap leaves {self.cap_bytes:,}; raise the cap by "
            f"{least_bytes - self.cap_bytes:,} bytes, or train a network of at most "
            f"{int(room / (3 * _LEAST_BITS)):,} weights (lower model.num_layers or model.width), "
            "which leaves 3 bits for each"
        )


def _curve(matrix: _Matrix) -> tuple[Floats, Floats]:
    """Estimated (bits, loss) of a tensor at each of `_MULTIPLES`, from some of its rows."""
    count = len(matrix.weight)
    some = torch.arange(0, count, max(1, count // _SAMPLE_ROWS))
    weight, share = matrix.weight[some].double(), count / max(len(some), 1)
    bits, losses = [0.0] * len(_MULTIPLES), [0.0] * len(_MULTIPLES)
    before = None
    for k, multiple in enumerate(_MULTIPLES):
        scales = matrix.steps(multiple)[some]
        if before is not None and torch.equal(scales, before):  # at either end
            bits[k], losses[k] = bits[k - 1], losses[k - 1]
            continue
        before, steps = scales, scales.double()
        codes = torch.div(weight, steps[:, None]).round_()
        error = (codes * steps[:, None]).sub_(weight)
        cost = (error.square_() * matrix.balance.columns_cost).sum(1)
        losses[k] = share * float(matrix.balance.rows_cost[some] @ cost)
        bits[k] = share * _entropy_bits(codes.numpy())
    return np.array(bits), np.array(losses)


def _entropy_bits(codes: Floats) -> float:
    """Bits of codes if rows of similar magnitude share a table, as in `pack.ans`."""
    if not codes.size:
        return 0.0
    fine_bits = 0.0
    if np.abs(codes).max() > _LARGEST_COARSE:
        codes, fine_bits = np.round(codes / FINE_STEPS), codes.size * math.log2(FINE_STEPS)
    edges = [2 ** (k / 2) for k in range(-8, 14)]
    classes = np.digitize(np.abs(codes).mean(1), edges)
    cells = (classes[:, None] * 256 + codes + 128).astype(np.int64)
    counts = np.bincount(cells.ravel(), minlength=256 * (len(edges) + 1)).reshape(-1, 256)
    totals = np.broadcast_to(counts.sum(1, keepdims=True), counts.shape)
    used = counts > 0
    return fine_bits + float((counts[used] * np.log2(totals[used] / counts[used])).sum())
