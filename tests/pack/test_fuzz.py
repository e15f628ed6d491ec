"""Protects readers of foreign files: every mutant is decoded or refused by name, within bounds."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz_container.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("fuzz_container", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_mutants_are_decoded_or_refused_by_name(tool) -> None:
    outcomes, _, _ = tool.fuzz(2_000, seed=1)
    assert sum(outcomes.values()) == 2_000 and len(outcomes) > 30
    assert any(outcome.startswith("decoded") for outcome in outcomes)


def test_mutants_reserve_no_more_than_declared_bytes_and_tables_need(tool) -> None:
    _, most_bytes, _ = tool.fuzz(60, seed=2, watch_every=1)
    assert 0 < most_bytes <= tool.MEMORY_BOUND_BYTES


@pytest.mark.slow
def test_a_hundred_thousand_mutants_keep_to_the_bounds(tool) -> None:
    outcomes, most_bytes, slowest_s = tool.fuzz(100_000, seed=3, watch_every=100)
    assert sum(outcomes.values()) == 100_000
    assert most_bytes <= tool.MEMORY_BOUND_BYTES and slowest_s < 5.0


def test_a_file_cannot_claim_more_tables_than_its_size_allows(tool) -> None:
    import numpy as np

    from speedrun.errors import FormatError
    from speedrun.pack import ans

    codes = np.zeros((30, 30), np.int8)
    data = bytearray(ans.encode(codes.tobytes(), [(30, 30)]))
    data[0] = 33
    with pytest.raises(FormatError, match="33 tables"):
        ans.decode(bytes(data), [(30, 30)])
