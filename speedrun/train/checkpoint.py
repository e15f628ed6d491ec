"""Everything a run needs to go on as if nothing had happened, in one safetensors file.

Weights, optimiser moments, the average and the step number. The order of the data is a function of
seed and step, and the clock's account is the ledger beside it, so neither is stored twice. A digest
covers it all: safetensors alone would load a flipped bit as a weight.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speedrun.config import RunConfig
from speedrun.errors import CheckpointError
from speedrun.files import write_atomic
from speedrun.model.gpt import GPT
from speedrun.optim.averaging import WeightAverage


class Checkpoints:
    """The checkpoint of one run folder; each save replaces the one before in one step."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        """`folder` is the run folder; the file is `checkpoint/state.safetensors` inside it."""
        self.path = folder / "checkpoint" / "state.safetensors"
        self.run = run

    def save(
        self,
        step: int,
        model: GPT,
        optimizers: list[torch.optim.Optimizer],
        average: WeightAverage,
    ) -> None:
        """Write the state after `step` steps.

        Raises
            OutputError: the disk is full or the folder is not writable; an older checkpoint stays.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"step": step, "run": self.run.to_dict()}
        parts = {"model": model.state_dict(), "average": average.state_dict()}
        parts |= {f"optimizer{i}": each.state_dict() for i, each in enumerate(optimizers)}
        for name, state in parts.items():
            plain[name] = _take_tensors(state, name, tensors)
        text = json.dumps(plain)
        metadata = {"speedrun": text, "sha256": _digest(text, tensors)}
        write_atomic(self.path, save(tensors, metadata=metadata))

    def restore(
        self,
        model: GPT,
        optimizers: list[torch.optim.Optimizer],
        average: WeightAverage,
    ) -> int | None:
        """Load the checkpoint into the given objects; returns the steps done, None without one.

        Raises
            CheckpointError: the file is damaged, or was written by a run with another recipe.
        """
        if not self.path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                text, digest = file.metadata()["speedrun"], file.metadata()["sha256"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path}: damaged: {error}; start a new run") from error
        if _digest(text, tensors) != digest:
            raise CheckpointError(
                f"{self.path}: damaged: its content does not have the sha256 that it names; "
                "start a new run"
            )
        plain = json.loads(text)
        if different := _differences(plain["run"], json.loads(json.dumps(self.run.to_dict()))):
            raise CheckpointError(
                f"{self.path}: belongs to another recipe: {different[0]}; "
                "resume with the recipe and seed that it was started with"
            )
        try:
            model.load_state_dict(_put_tensors(plain["model"], tensors))
            average.load_state_dict(_put_tensors(plain["average"], tensors))
            for i, optimizer in enumerate(optimizers):
                optimizer.load_state_dict(_put_tensors(plain[f"optimizer{i}"], tensors))
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: does not fit this model: {error}") from error
        return int(plain["step"])


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _differences(there: Any, here: Any, key: str = "") -> list[str]:
    """What two settings disagree on, key by key."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = sorted(there.keys() | here.keys())
        return [
            line
            for name in names
            for line in _differences(there.get(name), here.get(name), f"{key}.{name}".strip("."))
        ]
    return [] if there == here else [f"{key} is {there!r} there and {here!r} here"]


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Copy a nested state; tensors go to `tensors` and leave `{"tensor": path}` behind."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous().cpu().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        # Keys may be parameter numbers, which JSON would turn into text: keep pairs.
        pairs = [
            [key, _take_tensors(item, f"{path}/{key}", tensors)] for key, item in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        return [_take_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_take_tensors` (tuples come back as lists)."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _put_tensors(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value
