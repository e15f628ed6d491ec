"""What a network scores at several sizes: one line and one point of a curve for each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from speedrun.bpb import score
from speedrun.config import RunConfig
from speedrun.data.dataset import Dataset
from speedrun.errors import PackError
from speedrun.files import write_atomic
from speedrun.model.gpt import GPT
from speedrun.pack.fit import fit_weights
from speedrun.pack.weights import unpack_weights
from speedrun.predict import ModelPredictor
from speedrun.quant.calibration import Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One size of a sweep."""

    cap_bytes: int
    """Code included."""
    total_bytes: int
    bits_per_weight: float
    bpb: float
    loss: float
    """What rounding was estimated to cost, nats per token."""
    is_full: bool


def score_part(run: RunConfig, weights: dict[str, Tensor], dataset: Dataset, tokens: int) -> float:
    """Bits per byte of weights on the first validation tokens; enough to compare, not to claim."""
    model = GPT(run.model)
    model.load_state_dict(weights)
    model.requires_grad_(False)
    every = dataset.val_tokens()
    part = every[: tokens + 1]
    # A part of the text has a part of the bytes.
    num_bytes = max(round(dataset.val_raw_bytes * len(part) / len(every)), 1)
    chunks = dataclasses.asdict(run.evaluation) | {"stride": run.evaluation.context}
    predictor = ModelPredictor(model, run.model.vocab_size)
    return score(predictor, part, num_bytes=num_bytes, **chunks).bpb


def sweep(
    run: RunConfig,
    weights: dict[str, Tensor],
    calibration: Calibration | None,
    dataset: Dataset,
    *,
    caps: Sequence[int],
    code_bytes: int,
    tokens: int,
    echo: Callable[[str], None] = lambda line: None,
) -> list[Point]:
    """Fit the weights to each cap and score them; a cap that is too small is said and left out."""
    num_weights = sum(each.numel() for each in weights.values() if each.is_floating_point())
    points = []
    for cap in sorted(caps):
        try:
            fitted = fit_weights(
                weights,
                run.quant,
                {"run": run.to_dict()},
                cap_bytes=cap - code_bytes,
                calibration=calibration,
            )
        except PackError as error:
            echo(f"{cap:>13,}  {error}")
            continue
        found = score_part(run, unpack_weights(fitted.data)[1], dataset, tokens)
        point = Point(
            cap_bytes=cap,
            total_bytes=code_bytes + len(fitted.data),
            bits_per_weight=8 * len(fitted.data) / num_weights,
            bpb=found,
            loss=fitted.loss,
            is_full=fitted.is_full,
        )
        points.append(point)
        echo(
            f"{point.cap_bytes:>13,}  {point.total_bytes:>13,}  {point.bits_per_weight:6.3f}  "
            f"{point.bpb:.5f}{'' if point.is_full else '  every step is as fine as it can be'}"
        )
    return points


def write_points(path: Path, points: Sequence[Point]) -> None:
    """Write a sweep as JSON.

    Raises
        OutputError: the file cannot be written.
    """
    rows = [dataclasses.asdict(point) for point in points]
    write_atomic(path, (json.dumps(rows, indent=2) + "\n").encode())
