"""Weights in and out of `model.srz`: how many bits a tensor gets, and what the arrays mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speedrun.config import QuantConfig
from speedrun.errors import FormatError, PackError, QuantError
from speedrun.pack import codecs
from speedrun.pack.container import RAW_LIMIT_BYTES, Section, read_container, write_container
from speedrun.quant.clip import deviation_clip, search_clip
from speedrun.quant.few_bits import binary_rows, ternary_clip
from speedrun.quant.rows import code_bits, dequantize_rows, quantize_rows


class Rows(NamedTuple):
    """A rounded tensor: codes (..., cols), scales (...) float16, and the bits of a code.

    Codes are int8, or int16 up to `LARGEST_FINE` where eight bits are too few. A matrix may have a
    scale for each of its columns too, (cols,) float16, and a correction: the codes and scales of
    two factors by the names they have in the file.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    columns: Tensor | None = None
    factors: dict[str, Tensor] = {}  # noqa: RUF012 (a NamedTuple's default, never written to)

    def weights(self) -> Tensor:
        """What the codes stand for, float32."""
        return _assemble("", self.parts())

    def parts(self) -> dict[str, Tensor]:
        """The tensors of the file, by the ends of their names."""
        parts = {"codes": self.codes, "scales": self.scales, **self.factors}
        if self.columns is not None:
            parts["columns"] = self.columns
        if self.codes.dtype == torch.int16:
            coarse = self.codes + FINE_STEPS // 2 >> _FINE_BITS
            parts["codes"] = coarse.to(torch.int8)
            parts["fine"] = (self.codes - (coarse << _FINE_BITS)).to(torch.int8)
        return parts


Rounded = dict[str, Rows | Tensor]
"""By name: codes with scales, a float16 tensor, or integers that are kept as they are."""
_INTEGERS = (torch.int8, torch.int16)
_FINE_BITS = 4
FINE_STEPS = 1 << _FINE_BITS
"""Parts of a coarse code's step that the second plane of a fine code tells apart."""
LARGEST_FINE = 127 * FINE_STEPS + FINE_STEPS // 2 - 1


def pack_weights(weights: dict[str, Tensor], quant: QuantConfig, meta: dict[str, Any]) -> bytes:
    """Round and compress weights; `meta` (JSON) travels along so that the model can be rebuilt.

    The order of `weights` does not matter: the same weights give the same bytes.

    Raises
        PackError: a tensor has no place in the file: not of floats, NaN, or too large for float16.
    """
    return write_weights(round_weights(weights, quant), quant.codec, meta)


def round_weights(weights: dict[str, Tensor], quant: QuantConfig) -> Rounded:
    """Round each tensor as `quant` says: to rows of codes if it is large, to float16 if not."""
    rounded: Rounded = {}
    for name in sorted(weights):
        weight = weights[name].detach()
        if weight.dtype in _INTEGERS and weight.ndim == 1:
            rounded[name] = weight.cpu()
            continue
        if not weight.is_floating_point():
            raise PackError(f"weight {name!r} holds {weight.dtype}, which cannot be packed")
        # float64 would keep digits that no format below has.
        weight = weight.to("cpu", torch.float32)
        bits = code_bits(name, weight, quant)
        if not bits:
            rounded[name] = _half(name, weight)
            continue
        matrix = weight.reshape(-1, weight.shape[-1])
        try:
            codes, scales = _round(matrix, bits, quant)
        except QuantError as error:
            raise PackError(f"weight {name!r}: {error}") from error
        rounded[name] = Rows(codes.view(weight.shape), scales.view(weight.shape[:-1]), bits)
    return rounded


def _round(matrix: Tensor, bits: int, quant: QuantConfig) -> tuple[Tensor, Tensor]:
    if bits == 1:
        return binary_rows(matrix)
    if bits == 2:
        clip = ternary_clip(matrix)
    elif quant.clip_deviations:
        clip = deviation_clip(matrix, deviations=quant.clip_deviations)
    else:
        clip = search_clip(matrix, bits=bits, candidates=quant.clip_candidates)
    return quantize_rows(matrix, clip, bits=bits)


def write_weights(rounded: Rounded, codec: str, meta: dict[str, Any]) -> bytes:
    """Put rounded weights into a container, a section for each width of codes.

    Codes of one width share their statistics, down to the heaps that clipping leaves at the ends.
    With `best`, a tensor that a general compressor makes smaller, as repeated rows do, gets a
    section of its own.
    """
    if clash := [name for name in rounded if ":" in name]:
        raise PackError(f"weight {clash[0]!r}: a colon in a name is kept for its parts; rename it")
    sections: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    modelled = set()  # where nothing repeats, the general compressors need minutes to lose
    for name, tensor in sorted(rounded.items()):
        if isinstance(tensor, Rows):
            parts, own = tensor.parts(), f"{min(tensor.bits, 8)} bits"
            codes = parts.pop("codes").numpy()
            if codec == "best" and _repeats(codes):
                own = f":{name}"
            elif codec in ("ans", "best"):
                modelled |= {own, "fine"}
            sections.setdefault(own, {})[f"{name}:codes"] = codes
            for part, values in parts.items():
                kind = part if part == "fine" else "factors"
                kind = "scales" if values.dtype == torch.float16 else kind
                sections.setdefault(kind, {})[f"{name}:{part}"] = values.numpy()
        else:
            # Sorting puts these behind the codes; a stream of counts has a section of its own.
            own = name if tensor.dtype in _INTEGERS else "small"
            sections.setdefault(own, {})[name] = tensor.numpy()
    ordered = [
        Section(arrays, "ans" if kind in modelled else codec)
        for kind, arrays in sorted(sections.items())
    ]
    return write_container(ordered, meta)


def _repeats(codes: np.ndarray[Any, Any]) -> bool:
    raw, shape = codes.tobytes(), codes.shape
    found, _ = codecs.compress(raw, "probe", [(codes.size // max(shape[-1], 1), shape[-1])])
    return found != "ans"


def unpack_weights(
    data: bytes, *, raw_limit_bytes: int = RAW_LIMIT_BYTES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read bytes of any origin back into (meta, weights by name): float32, or integers as stored.

    Raises
        FormatError: the container is broken, or its arrays are not weights as FORMAT.md has them.
    """
    meta, arrays = read_container(data, raw_limit_bytes=raw_limit_bytes)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        if array.dtype not in (np.int8, np.int16, np.float16):
            raise FormatError(f"array {name!r} is {array.dtype}, not int8, int16 or float16")
        owner, _, part = name.partition(":")
        tensors.setdefault(owner, {})[part] = torch.from_numpy(array)
    return meta, {name: _assemble(name, parts) for name, parts in tensors.items()}


def _assemble(name: str, parts: dict[str, Tensor]) -> Tensor:
    """One weight from its parts, every one of which may be hostile."""
    # Codes that lost their scales would be a matrix.
    if parts.keys() == {""} and parts[""].dtype in _INTEGERS and parts[""].ndim == 1:
        return parts[""]
    plain, codes, scales = (parts.pop(part, None) for part in ("", "codes", "scales"))
    fine, columns = parts.pop("fine", None), parts.pop("columns", None)
    left, right = (_factor(parts, side) for side in ("left", "right"))
    floats = [part for part in (plain, scales, columns, left, right) if part is not None]
    if not all(part.is_floating_point() and bool(part.isfinite().all()) for part in floats):
        raise FormatError(f"weight {name!r} has parts that are not finite float16")
    if plain is not None and all(part is None for part in (codes, scales, columns, fine)):
        weight = plain.float()
    elif plain is None and codes is not None and scales is not None:
        if codes.dtype != torch.int8 or codes.ndim < 2 or scales.shape != codes.shape[:-1]:
            raise FormatError(
                f"weight {name!r}: {codes.dtype} codes {tuple(codes.shape)} "
                f"and scales {tuple(scales.shape)}, need one scale per row"
            )
        if not bool((scales > 0).all()) or bool((codes == -128).any()):
            raise FormatError(f"weight {name!r} has a scale of zero or below, or a code of -128")
        if fine is not None:
            half = FINE_STEPS // 2
            if fine.dtype != torch.int8 or fine.shape != codes.shape:
                raise FormatError(
                    f"weight {name!r}: {fine.dtype} fine codes {tuple(fine.shape)} for codes "
                    f"{tuple(codes.shape)}, need one int8 for each"
                )
            if not bool(((fine >= -half) & (fine < half)).all()):
                raise FormatError(f"weight {name!r} has fine codes outside {-half} to {half - 1}")
            codes = (codes.to(torch.int16) << _FINE_BITS) + fine
        weight = dequantize_rows(codes, scales)
        if columns is not None:
            if columns.shape != codes.shape[-1:] or not bool((columns > 0).all()):
                raise FormatError(
                    f"weight {name!r}: column scales {tuple(columns.shape)} for codes "
                    f"{tuple(codes.shape)}, need one above zero for each column"
                )
            weight = weight * columns.float()
    else:
        raise FormatError(f"weight {name!r} needs codes with scales, or neither")
    if left is not None and right is not None:
        if (*left.shape[:1], *right.shape[1:]) != weight.shape or left.shape[1:] != right.shape[:1]:
            raise FormatError(f"weight {name!r}: correction {left.shape} x {right.shape} misfits")
        weight = weight + left.float() @ right.float()
    elif left is not None or right is not None or parts:
        raise FormatError(f"weight {name!r} has stray parts {sorted(parts) or 'left or right'}")
    # Each scale is finite, their product need not be.
    if not bool(weight.isfinite().all()):
        raise FormatError(f"weight {name!r} has values that are not finite")
    return weight


def _factor(parts: dict[str, Tensor], side: str) -> Tensor | None:
    """One factor of a correction: float16 as stored, or codes times their component's scale."""
    factor, scales = parts.pop(side, None), parts.pop(f"{side}_scales", None)
    if scales is None or factor is None:
        return factor if scales is None else scales
    if factor.dtype != torch.int8 or factor.ndim != 2 or scales.dtype != torch.float16:
        return factor
    count = factor.shape[1 if side == "left" else 0]
    if scales.shape != (count,):
        raise FormatError(f"{side} has {count:,} components and scales {tuple(scales.shape)}")
    return factor.float() * (scales.float() if side == "left" else scales.float()[:, None])


def _half(name: str, weight: Tensor) -> Tensor:
    half = weight.half()
    if not bool(half.isfinite().all()):
        worst = float(weight.abs().max())
        raise PackError(f"weight {name!r} holds {worst:,.0f}, float16 ends at 65,504")
    return half
