"""What each tensor costs in a packed file and what rounding did to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from speedrun.pack.container import Array, read_container, read_header
from speedrun.pack.fit import matrix_loss
from speedrun.pack.weights import FINE_STEPS, unpack_weights
from speedrun.quant.calibration import Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One packed tensor."""

    name: str
    kind: str
    """`rows` of codes, `float16`, or `integers` that are no weights."""
    bits: int
    """Bits that its largest code needs, or those of a number."""
    clip: float
    """Largest weight that codes stand for in the middle row; 0 without codes."""
    codec: str
    """Of the section that its codes, or its numbers, are in."""
    num_weights: int
    packed_bytes: float
    """Its share of its sections, by entropy."""
    entropy_bytes: float
    """Order-0 entropy of its bytes, scales included: what a perfect coder without context needs."""
    relative_error: float
    """Squared rounding error over squared weights; 0 for a tensor of zeros."""
    loss: float
    """Nats per token that its rounding is estimated to cost; 0 without a calibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """A packed file, tensor by tensor."""

    tensors: tuple[TensorReport, ...]
    file_bytes: int
    overhead_bytes: int
    """Header, table of contents and digest."""

    @property
    def over_entropy(self) -> float:
        """Bytes of the sections over order-0 entropy; a codec with contexts can go below 1."""
        entropy = sum(tensor.entropy_bytes for tensor in self.tensors)
        return (self.file_bytes - self.overhead_bytes) / entropy if entropy else 1.0


def report_pack(
    data: bytes, weights: dict[str, Tensor], calibration: Calibration | None = None
) -> PackReport:
    """Compare packed bytes with the weights they were made from; FormatError if broken."""
    header = read_header(data)
    arrays = read_container(data)[1]
    entropies = {name: _entropy_bytes(array) for name, array in arrays.items()}
    codecs = {name: header.sections[section][0] for name, _, _, section in header.arrays}
    packed: dict[str, float] = {}
    for number, (_, _, stored) in enumerate(header.sections):
        members = [name for name, _, _, section in header.arrays if section == number]
        total = sum(entropies[name] for name in members)
        for name in members:
            packed[name] = stored * (entropies[name] / total if total else 1 / len(members))
    tensors = []
    for name, unpacked in unpack_weights(data)[1].items():
        weight = weights[name].detach().to("cpu").double()
        codes, fine = arrays.get(f"{name}:codes"), arrays.get(f"{name}:fine")
        if codes is not None and fine is not None:
            codes = codes.astype(np.int16) * FINE_STEPS + fine
        largest = 0 if codes is None else int(np.abs(codes).max(initial=0))
        energy = float(weight.square().sum())
        parts = [part for part in arrays if part.partition(":")[0] == name]
        kind = "float16" if weights[name].is_floating_point() else "integers"
        loss = 0.0
        if codes is not None and calibration is not None:
            loss = matrix_loss(name, unpacked - weight.float(), calibration)
        tensors.append(
            TensorReport(
                name=name,
                kind=kind if codes is None else "rows",
                bits=8 * arrays[name].itemsize if codes is None else largest.bit_length() + 1,
                clip=0.0 if codes is None else largest * _middle(arrays[f"{name}:scales"]),
                codec=codecs[name if codes is None else f"{name}:codes"],
                num_weights=weight.numel(),
                packed_bytes=sum(packed[part] for part in parts),
                entropy_bytes=sum(entropies[part] for part in parts),
                relative_error=float((unpacked - weight).square().sum()) / energy
                if energy
                else 0.0,
                loss=loss,
            )
        )
    stored_bytes = sum(stored for _, _, stored in header.sections)
    return PackReport(
        tensors=tuple(tensors), file_bytes=len(data), overhead_bytes=len(data) - stored_bytes
    )


def _middle(scales: Array) -> float:
    return float(np.median(scales.astype(np.float64)))


def _entropy_bytes(array: Array) -> float:
    """Order-0 entropy in bytes; items of several bytes count as so many planes."""
    planes = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize).T
    total = 0.0
    for plane in planes:
        counts = np.bincount(plane)
        counts = counts[counts > 0]
        total += float((counts * np.log2(plane.size / counts)).sum()) / 8
    return total
