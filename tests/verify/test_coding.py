"""Protects the arithmetic coder: the same tokens come back, at the length that theory promises."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.errors import DistributionError, FormatError
from speedrun.verify.coding import Decoder, Encoder, frequencies


def slow_decode(code: bytes, tables: list[np.ndarray]) -> list[int]:
    """The tokens whose interval holds the number that the code writes: one whole number, never cut.

    The same widths as in the coder, which rounds them down; but no bytes, no carries.
    """
    low, width, bits, found = 0, 1 << 128, 128, []
    for weights in tables:
        step = width // int(weights.sum())
        number = int.from_bytes(code[: bits // 8].ljust(bits // 8, b"\0"), "big")
        token = 0
        while low + step * int(weights[token]) <= number:
            low += step * int(weights[token])
            token += 1
        found.append(token)
        width = step * int(weights[token])
        while width < 1 << 120:
            low, width, bits = low << 8, width << 8, bits + 8
    return found


def exact_bits(tokens: list[int], tables: list[np.ndarray]) -> float:
    """Length of the ideal code, from the product of all shares as one fraction."""
    pairs = zip(tokens, tables, strict=True)
    width = math.prod((Fraction(int(w[t]), int(w.sum())) for t, w in pairs), start=Fraction(1))
    return math.log2(width.denominator) - math.log2(width.numerator)


def code(tokens: list[int], tables: list[np.ndarray]) -> tuple[bytes, float]:
    encoder = Encoder()
    bits = sum(encoder.put(*pair) for pair in zip(tokens, tables, strict=True))
    return encoder.finish(), bits


def decode(data: bytes, tables: list[np.ndarray]) -> list[int]:
    decoder = Decoder(data)
    return [decoder.take(weights) for weights in tables]


STEEPNESS = st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0, 1000.0, 3e38])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(2, 40),
    length=st.integers(0, 120),
    steepness=STEEPNESS,
    follow=st.floats(0, 1),
)
def test_tokens_come_back_at_the_length_of_the_exact_code(seed, vocab, length, steepness, follow):
    rng = np.random.default_rng(seed)
    logits = (steepness * rng.uniform(-1, 1, (length, vocab))).astype(np.float32)
    tokens = np.where(
        rng.random(length) < follow, logits.argmax(1), rng.integers(0, vocab, length)
    ).tolist()
    tables = [frequencies(row) for row in logits]
    data, bits = code(tokens, tables)
    assert decode(data, tables) == tokens
    assert slow_decode(data, tables) == tokens
    exact = exact_bits(tokens, tables)
    assert bits == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert 8 * len(data) <= exact + 8 + 1e-6


def shannon_bits(row: np.ndarray, token: int) -> float:
    nats = row.astype(np.float64)
    return float((np.logaddexp.reduce(nats) - nats[token]) / math.log(2))


@pytest.mark.parametrize("vocab", [2, 8, 1_024, 65_536])
@pytest.mark.parametrize("rare", [0.5, 1e-3, 1e-6, 1e-9])
def test_a_token_costs_its_shannon_length(vocab, rare):
    """A fiftieth of a per cent is allowed; rounding costs below a millionth of a bit."""
    row = np.full(vocab, math.log((1 - rare) / (vocab - 1)), dtype=np.float32)
    row[1] = math.log(rare)
    weights = frequencies(row)
    costs = {token: Encoder().put(token, weights) for token in (0, 1, vocab - 1)}
    for token, bits in costs.items():
        assert -1e-4 < bits - shannon_bits(row, token) < 1e-6
    assert costs[1] < 1.0002 * shannon_bits(row, 1)


def test_a_long_text_of_a_large_alphabet_costs_its_shannon_length():
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 4, (60, 65_536)).astype(np.float32)
    tables = [frequencies(row) for row in rows]
    tokens = [int(np.argmax(row + rng.gumbel(size=row.size))) for row in rows]
    data, _ = code(tokens, tables)
    expected = sum(shannon_bits(row, token) for row, token in zip(rows, tokens, strict=True))
    assert expected <= 8 * len(data) <= 1.0002 * expected + 8
    assert decode(data, tables) == tokens


def test_every_token_stays_possible():
    row = np.array([300.0, -300.0, -np.finfo(np.float32).max], np.float32)
    assert frequencies(row).tolist() == [2**46 + 1, 1, 1]
    data, bits = code([1, 2, 1, 0, 2], [frequencies(row)] * 5)
    assert decode(data, [frequencies(row)] * 5) == [1, 2, 1, 0, 2]
    assert bits == pytest.approx(4 * 46, abs=1e-6)


def test_frequencies_are_these_numbers():
    """Golden: they must not differ between processors, or a file cannot be read elsewhere."""
    row = np.array([0, -0.5, -1, -3.25, -20, -40, 0.75], np.float32)
    assert frequencies(row).tolist() == [
        *(33239841107918, 20160982755928, 12228254170263, 1288848507412, 68513, 1),
        70368744177665,
    ]
    exact = 2.0**46 * np.exp(row.astype(np.float64) - 0.75)
    np.testing.assert_allclose(frequencies(row) - 1, exact, rtol=4e-10, atol=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [1, 2])
def test_frequencies_do_not_depend_on_how_the_row_lies_in_memory(dtype, step):
    rows = np.random.default_rng(1).normal(0, 3, (5, 202)).astype(np.float32).astype(dtype)
    for row in rows:
        assert np.array_equal(frequencies(row[::step]), frequencies(row[::step].copy()))
        assert np.array_equal(frequencies(row)[:101], frequencies(np.roll(row, 7))[7:108])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_is_refused(bad):
    with pytest.raises(DistributionError, match="must be finite"):
        frequencies(np.array([0, bad, 1], np.float32))


def test_carries_run_through_bytes_of_255():
    # Nearly all of the interval belongs to token 1: the lower end creeps up to the next byte.
    weights = np.array([1, 2**46], np.int64)
    tokens = [1] * 300 + [0] + [1] * 300 + [0, 0, 1]
    data, _ = code(tokens, [weights] * len(tokens))
    assert decode(data, [weights] * len(tokens)) == tokens
    assert slow_decode(data, [weights] * len(tokens)) == tokens


def test_nothing_is_coded_in_no_bytes_and_a_certain_text_in_one_at_most():
    assert Encoder().finish() == b""
    sure = frequencies(np.array([200, 0, 0], np.float32))
    data, _ = code([0] * 1000, [sure] * 1000)
    assert len(data) <= 1 and decode(data, [sure] * 1000) == [0] * 1000


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=40), seed=st.integers(0, 2**32), vocab=st.integers(2, 300))
def test_any_bytes_decode_to_tokens_or_are_refused(data, seed, vocab):
    rng = np.random.default_rng(seed)
    decoder = Decoder(data)
    try:
        for _ in range(60):
            assert 0 <= decoder.take(frequencies(rng.normal(0, 9, vocab).astype("f4"))) < vocab
    except FormatError:
        pass


def test_another_predictor_does_not_decode():
    rng = np.random.default_rng(4)
    tables = [frequencies(row) for row in rng.normal(0, 2, (200, 50)).astype(np.float32)]
    tokens = rng.integers(0, 50, 200).tolist()
    data, _ = code(tokens, tables)
    decoder, found = Decoder(data), []
    try:
        for weights in tables:
            found.append(decoder.take(weights + 1000 * (np.arange(50) == 7)))
    except FormatError:
        pass
    assert found != tokens
