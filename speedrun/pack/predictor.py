"""A submission from a predictor of the user's own: any framework, ten lines, no recipe."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speedrun.config import EvalConfig
from speedrun.errors import PackError
from speedrun.pack.bundle import build_host_bundle
from speedrun.pack.container import Section, write_container


def pack_predictor(
    source: str,
    arrays: Mapping[str, np.ndarray],
    *,
    vocab_size: int,
    evaluation: EvalConfig,
    codec: str = "best",
) -> tuple[bytes, bytes]:
    """Build the two counted files, `train_gpt.py` and `model.srz`, in this order.

    Args:
        source: Module with `load(arrays)`, which returns a `predict.Predictor`.
        arrays: What `load` is given again, by name: any shape, integers, floats or booleans.
        vocab_size: Columns of the logits.
        evaluation: How the judge asks: context, stride, windows per call.
        codec: Of the sections; see FORMAT.md.

    Raises
        PackError: the source is no such module, or an array has no place in the container.
    """
    sections: dict[int, dict[str, np.ndarray]] = {}
    for name, array in sorted(arrays.items()):
        sections.setdefault(array.itemsize, {})[name] = array
    meta: dict[str, Any] = {
        "evaluation": {
            "context": evaluation.context,
            "stride": evaluation.stride,
            "batch_windows": evaluation.batch_windows,
        },
        "vocab_size": vocab_size,
    }
    ordered = [Section(part, codec) for _, part in sorted(sections.items())]
    return build_host_bundle(source), write_container(ordered, meta)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` or `.safetensors` file; pickled objects are refused.

    Raises
        PackError: unreadable, or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    broken = (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (*broken, zipfile.BadZipFile, SafetensorError) as error:
        raise PackError(f"{path}: not a .npz or .safetensors file of arrays: {error}") from error
