"""An attack as it is handed in: one source, its arrays, and how it wants to be asked."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np

HERE = Path(__file__).parent
_BASE = re.compile(r"^from tests\.cheats\.attacks\.base import .*$", re.MULTILINE)


def source(name: str) -> str:
    """Source of an attack, with that of `base` in it."""
    base = (HERE / "base.py").read_text(encoding="utf-8").split('"""\n', 1)[1]
    return _BASE.sub(lambda _: base, (HERE / f"{name}.py").read_text(encoding="utf-8"))


def arrays(name: str, counts: np.ndarray, val_tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What it packs: counts of training pairs (V, V), and what else it steals from the text."""
    make = getattr(_module(name), "arrays", None)
    return make(counts, val_tokens.astype(np.int64)) if make else {"counts": counts}


def evaluation(name: str, targets: int) -> dict[str, int]:
    """Context, stride and windows per call that it declares, for so many targets."""
    declare = getattr(_module(name), "evaluation", None)
    return declare(targets) if declare else {"context": 256, "stride": 128, "batch_windows": 32}


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tests.cheats.attacks.{name}")
