"""Protects the fused kernels on machines without a GPU: Triton interprets them in a child."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speedrun.kernels import choose
from speedrun.kernels.choose import choosing, is_chosen, is_chosen_to_learn, way_to_attend

CASES = Path(__file__).with_name("fused_cases.py")


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
def test_fused_kernels_agree_with_their_plain_twins() -> None:
    # Triton decides when it is imported, and other tests of this process may have done that.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "--tb=short", "--show-capture=no", str(CASES)],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_nothing_is_chosen_before_it_was_measured() -> None:
    assert choose.chosen() == frozenset() and way_to_attend() == ""


def test_a_choice_ends_with_its_block() -> None:
    with choosing(frozenset({"mlp", "flash"})):
        assert is_chosen("mlp") and not is_chosen("head") and way_to_attend() == "flash"
    assert not is_chosen("mlp")


def test_evaluation_is_never_fused() -> None:
    import torch

    with choosing(frozenset({"mlp", "flash"})), torch.inference_mode():
        assert not is_chosen_to_learn("mlp") and way_to_attend() == ""


def test_a_fast_path_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"no such fast paths: .*'warp'"):
        choose.choose(frozenset({"warp"}))
