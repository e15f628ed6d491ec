"""Sizes are decimal, durations read as people write them, nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedrun.errors import ConfigError
from speedrun.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600s", 600), ("10min", 600), ("1h30m", 5400), ("45", 45), ("0.5s", 0.5), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0s", "-5s", "ten", "5 weeks", "1h30x", "s"])
def test_a_bad_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="600s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MB", 16_000_000), ("16_000_000", 16_000_000), ("1.5 kB", 1500), ("950kb", 950_000)],
)
def test_sizes_are_decimal(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "16MiB", "1.5", "-3MB", "lots"])
def test_a_bad_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.integers(min_value=1, max_value=10**15))
def test_whole_numbers_of_bytes_survive(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_size(f"{size:,}") == size
