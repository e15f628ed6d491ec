"""An arithmetic coder driven by logits: tokens to bytes, and back to the very tokens.

Both sides turn the same logits into the same integer frequencies, on every machine: nothing but
exactly rounded operations decides them. A token costs no more than a millionth of a bit above its
Shannon length, however unlikely it is and however large the alphabet; a code ends within a byte.

The coder is ours, because the libraries that we know (constriction, torchac) count probabilities in
2^-24 or 2^-16: an alphabet of 65,536 costs 0.006 bits a token or does not fit, and a token of
probability 1e-6 may cost 0.1 bits more than it should.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from speedrun.errors import DistributionError, FormatError

Ints = NDArray[np.int64]

_UNIT_BITS = 46
"""The likeliest token has a frequency of 2^46: a sum over 65,536 tokens stays below 2^63."""
_STATE_BITS = 128
_BYTE_LEFT = 1 << (_STATE_BITS - 8)
"""The interval is never narrower than this, so what division by a sum of 2^62 loses is nothing."""
# 2^f = e^(f ln 2) for |f| <= 1/2, by Taylor; what is left out is below 2e-10 of the value.
_TAYLOR = [math.log(2) ** n / math.factorial(n) for n in range(8, -1, -1)]


def frequencies(logits: NDArray[np.float32]) -> Ints:
    """Integer weights of a whole alphabet, proportional to the softmax of its logits.

    Each is rounded down and raised by one, so that no token is impossible; with 65,536 tokens this
    costs the likely ones 1e-9 bits.

    Shapes
        logits  (vocab,)  float32
        result  (vocab,)  int64, 1 to 2^46 + 1

    Raises
        DistributionError: a logit is NaN or infinite.
    """
    nats = np.ascontiguousarray(logits, dtype=np.float64)
    top = nats.max()
    if not np.isfinite(nats).all():
        raise DistributionError(
            f"logits reach from {nats.min()} to {top}; every logit must be finite"
        )
    # No call of exp: its last bit is another one on another processor.
    octaves = np.maximum((nats - top) * math.log2(math.e), -_UNIT_BITS - 1.0)
    whole = np.rint(octaves)
    rest = octaves - whole
    power = np.full_like(rest, _TAYLOR[0])
    for factor in _TAYLOR[1:]:
        power *= rest
        power += factor
    weights: Ints = np.ldexp(power, whole.astype(np.int32) + _UNIT_BITS).astype(np.int64)
    return weights + 1


class Encoder:
    """Writes tokens, one at a time, each with the frequencies that its past gave it.

    Source
        Arithmetic coding (Rissanen 1976, Pasco 1976) as a range coder (Martin 1979), with carries
        and Python's long integers.
    """

    def __init__(self) -> None:
        self._written = bytearray()
        self._low, self._width = 0, 1 << _STATE_BITS

    def put(self, token: int, weights: Ints) -> float:
        """Append a token; returns what it costs in bits, -log2 of its share of the frequencies."""
        upto = np.cumsum(weights)
        total, end, weight = int(upto[-1]), int(upto[token]), int(weights[token])
        step = self._width // total
        self._low += step * (end - weight)
        self._width = step * weight
        self._carry()
        while self._width < _BYTE_LEFT:
            self._shift()
        return math.log2(total / weight)

    def finish(self) -> bytes:
        """The code: as few bytes as name a number in the interval. Nothing can follow."""
        # The interval is at least one last byte wide, so a multiple of it lies inside.
        self._low = -(-self._low // _BYTE_LEFT) * _BYTE_LEFT
        self._carry()
        self._shift()
        return bytes(self._written).rstrip(b"\0")  # a reader goes on with zeros

    def _carry(self) -> None:
        if self._low >> _STATE_BITS:
            self._low -= 1 << _STATE_BITS
            place = len(self._written) - 1
            while self._written[place] == 255:
                self._written[place] = 0
                place -= 1
            self._written[place] += 1

    def _shift(self) -> None:
        top, rest = divmod(self._low, _BYTE_LEFT)
        self._written.append(top)
        self._low, self._width = rest << 8, self._width << 8


class Decoder:
    """Reads what an `Encoder` wrote, given the same frequencies in the same order."""

    def __init__(self, code: bytes) -> None:
        self._code, self._place = code, _STATE_BITS // 8
        self._inside = int.from_bytes(code[: self._place].ljust(self._place, b"\0"), "big")
        """Where the code's number lies in the interval, from its lower end."""
        self._width = 1 << _STATE_BITS

    def take(self, weights: Ints) -> int:
        """The next token.

        Raises
            FormatError: no token has this code: it is damaged, or the frequencies are others.
        """
        upto = np.cumsum(weights)
        total = int(upto[-1])
        step = self._width // total
        share = self._inside // step
        if share >= total:
            raise FormatError("the code names no token: it is damaged, or the predictor differs")
        token = int(np.searchsorted(upto, share, side="right"))
        weight = int(weights[token])
        self._inside -= step * (int(upto[token]) - weight)
        self._width = step * weight
        while self._width < _BYTE_LEFT:
            follows = self._code[self._place] if self._place < len(self._code) else 0
            self._inside, self._width = self._inside << 8 | follows, self._width << 8
            self._place += 1
        return token
