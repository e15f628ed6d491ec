"""Packing that looks at training text: calibrate what was trained, then round by what was seen.

It knows both `train` and `pack`, as `standalone` does. A bundle carries it only if its recipe asks
for it (`quant.method`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speedrun.clock import Clock, Ledger
from speedrun.config import RunConfig
from speedrun.errors import PackError
from speedrun.model.gpt import GPT
from speedrun.pack.fit import fit_weights, round_with_gptq
from speedrun.pack.weights import pack_weights, write_weights
from speedrun.quant.calibration import Calibration
from speedrun.train.calibrate import calibrate_in_time


def calibrate_trained(
    run: RunConfig,
    weights: dict[str, Tensor],
    shards: Sequence[Path],
    clock: Clock,
    *,
    first_step: int,
) -> Calibration:
    """Calibrate trained weights on the batches after `first_step`, in `quant.calibration_s`.

    `clock` is the one that trained, whose budget was less by these seconds.

    Raises
        BudgetError: the seconds do not hold one batch.
        DataError: a shard is not of the training split.
    """
    with clock.phase("set-up"):
        model = GPT(run.model)
        model.load_state_dict(weights)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    clock.budget_s = max(clock.budget_s, run.train.budget_s)
    return calibrate_in_time(model, shards, run, clock, first_step=first_step)


def pack_by_method(
    run: RunConfig,
    weights: dict[str, Tensor],
    calibration: Calibration | None,
    *,
    model_cap_bytes: int,
) -> bytes:
    """Pack as `quant.method` says; `fit` fills `model_cap_bytes`.

    Raises
        PackError: a tensor has no place in the file, or the cap is too small to fit.
    """
    quant, meta = run.quant, {"run": run.to_dict()}
    if quant.method == "fit":
        return fit_weights(
            weights, quant, meta, cap_bytes=model_cap_bytes, calibration=calibration
        ).data
    if quant.method == "gptq":
        if calibration is None:
            raise PackError("quant.method = 'gptq' needs quant.calibration_s above 0")
        return write_weights(round_with_gptq(weights, quant, calibration), quant.codec, meta)
    return pack_weights(weights, quant, meta)


def pack_fitted(
    run: RunConfig, trained: Any, shards: Sequence[Path], clock: Clock, *, model_cap_bytes: int
) -> bytes:
    """What a bundle does after training (`train.loop.Trained`): calibrate and pack."""
    calibration, quant = None, run.quant
    if quant.calibration_s or quant.calibration == "generated":
        # The network's own text may be had off the clock: no data is read for it.
        timed = clock if quant.calibration_s else Clock(float("inf"), Ledger(None))
        calibration = calibrate_trained(
            run, trained.weights, shards, timed, first_step=trained.steps
        )
    return pack_by_method(run, trained.weights, calibration, model_cap_bytes=model_cap_bytes)
