"""What a submission with a predictor of the user's own does: unpack the arrays, load it, answer.

`pack.bundle.build_host_bundle` ships this file and its imports, and the user's module beside them.
Neither torch nor a recipe is needed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from speedrun.errors import SpeedrunError
from speedrun.pack.container import read_container
from speedrun.predict import serve, take_stdio


def main(module: str) -> None:
    """Serve what `load(arrays)` of the user's module returns, until the judge is done."""
    if sys.argv[1:2] != ["predict"]:
        sys.exit("usage: python train_gpt.py predict model.srz (this code was trained elsewhere)")
    connection = take_stdio()
    try:
        _, arrays = read_container(Path(*sys.argv[2:3] or ["model.srz"]).read_bytes())
        serve(importlib.import_module(module).load(arrays), connection)
    except (SpeedrunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 (this is a command line)
        sys.exit(2)
