"""Protects single layers: published test vectors, and what the whole network would hide."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.config import ModelConfig
from speedrun.model.attention import exclude_own_value
from speedrun.model.embedding import SmearGate, bigram_hash
from speedrun.model.positions import rotary_base, rotary_table, rotate

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        (2048, (1887, 647, 977, 2046)),
        (3072, (835, 1100, 301, 650)),
        (4096, (3892, 3886, 476, 2009)),
        (10240, (1819, 3373, 1817, 4472)),
    ],
)
def test_bigram_hash_gives_the_published_buckets(buckets, expected):
    pairs = torch.tensor([[1, 5], [5, 100], [1023, 1023], [8191, 8191]])
    hashed = bigram_hash(pairs, buckets)
    assert hashed[:, 1].tolist() == list(expected)
    assert hashed[:, 0].tolist() == [buckets - 1] * 4


@given(
    ids=st.lists(st.integers(0, 65_535), min_size=1, max_size=20),
    buckets=st.integers(2, 20_000),
)
@settings(max_examples=60, deadline=None)
def test_bigram_hash_is_int32_arithmetic_inside_the_table(ids, buckets):
    def wrapped(value: int) -> int:
        return (value + 2**31) % 2**32 - 2**31

    expected = [buckets - 1] + [
        (wrapped(36313 * now) ^ wrapped(27191 * before)) % (buckets - 1)
        for before, now in itertools.pairwise(ids)
    ]
    assert bigram_hash(torch.tensor([ids]), buckets).tolist() == [expected]


def test_rotate_gives_the_published_vector():
    table = rotary_table(4, 4, 10_000.0, CPU)
    x = torch.arange(1.0, 9.0).expand(1, 4, 1, 8)
    expected = torch.tensor([-0.5666, 2.1191, -3.1111, 3.9382, 5, 6, 7, 8])
    torch.testing.assert_close(rotate(x, table)[0, 3, 0], expected, rtol=0, atol=6e-5)
    assert torch.equal(rotate(x, table)[0, 0, 0], x[0, 0, 0])


@pytest.mark.parametrize(
    ("rope_dims", "train_length", "length", "expected"),
    [
        (0, 1024, 2048, 20452.2287),
        (16, 1024, 2048, 22081.7903),
        (16, 2048, 98_304, 834_485.04),
        (16, 0, 98_304, 10_000.0),
        (16, 2048, 2048, 10_000.0),
        (16, 2048, 100, 10_000.0),
        (2, 1024, 2048, 10_000.0),
    ],
)
def test_rotary_base_stretches_as_published(rope_dims, train_length, length, expected):
    config = ModelConfig(rope_dims=rope_dims, rope_train_length=train_length)
    assert rotary_base(config, length) == pytest.approx(expected, rel=1e-8)


def test_rotated_products_depend_on_distance_only():
    table = rotary_table(40, 16, 10_000.0, CPU)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(16, generator=generator).expand(1, 40, 1, 16) for _ in range(2))
    scores = rotate(q, table)[0, :, 0] @ rotate(k, table)[0, :, 0].T
    torch.testing.assert_close(scores[30, 25], scores[12, 7])


@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_exclusive_outputs_share_nothing_with_their_own_value(batch, length, kv_heads, group, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, length, kv_heads * group, 6, generator=generator)
    v = torch.randn(batch, length, kv_heads, 6, generator=generator)
    out = exclude_own_value(y, v)
    for b in range(batch):
        for t in range(length):
            for h in range(kv_heads * group):
                own = v[b, t, h // group]
                expected = y[b, t, h] - (y[b, t, h] @ own) / (own @ own) * own
                torch.testing.assert_close(out[b, t, h], expected, rtol=1e-4, atol=1e-5)


def test_exclusive_attention_survives_a_zero_value():
    y = torch.ones(1, 1, 2, 4)
    assert torch.equal(exclude_own_value(y, torch.zeros(1, 1, 1, 4)), y)


def test_smear_starts_with_half_of_each_and_nothing_before_the_first():
    gate = SmearGate(ModelConfig(width=8, num_heads=1, num_kv_heads=1))
    x = torch.randn(1, 3, 8)
    out = gate(x)
    torch.testing.assert_close(out[0, 0], 0.5 * x[0, 0])
    torch.testing.assert_close(out[0, 2], 0.5 * x[0, 2] + 0.5 * x[0, 1])


def test_the_table_is_marked_as_torch_marks_constants():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(rotary_table).items() >= vars(marked).items() and vars(marked)
