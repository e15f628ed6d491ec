"""Protects patches: they give back every byte, whatever the two texts are."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.errors import FormatError
from speedrun.verify.patches import apply_patches, make_patches, read_number, write_number

FEW = st.binary(max_size=200) | st.lists(st.sampled_from([b"a", b"b", b"ab "]), max_size=200).map(
    b"".join
)


@settings(max_examples=150, deadline=None)
@given(found=FEW, wanted=FEW)
def test_any_two_texts_are_patched(found, wanted):
    assert apply_patches(found, make_patches(found, wanted), len(wanted)) == wanted


@settings(max_examples=50, deadline=None)
@given(
    text=st.text(alphabet="abc \n\tä", max_size=2_000),
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.binary(max_size=5)), max_size=8),
)
def test_a_few_changes_are_a_few_patches(text, changes):
    found = wanted = text.encode()
    for place, bytes_ in changes:
        wanted = wanted[:place] + bytes_ + wanted[place + 2 :]
    patches = make_patches(found, wanted)
    assert apply_patches(found, patches, len(wanted)) == wanted
    if found == wanted:
        assert patches == b""


def test_a_change_is_these_bytes():
    found, wanted = (
        b"x" * 200 + b" and so on, and so forth",
        b"x" * 200 + b"\nand so on, and so forth",
    )
    assert make_patches(found, wanted) == b"\1\xc8\1\1\1\n"
    assert make_patches(wanted + b"end", wanted) == b"\1\xe0\1\3\0"
    assert make_patches(b"", b"abc") == b"\1\0\0\3abc"
    assert make_patches(b"abc", b"") == b"\1\0\3\0"
    far = b" so far and so good "
    assert (
        make_patches(b"1" + far + b"2", b"3" + far + b"45")
        == bytes([2, 0, 20, 1, 1, 1, 2]) + b"345"
    )
    assert make_patches(b"abc", b"abc") == b""


def test_newlines_that_became_spaces_cost_four_bytes_each():
    wanted = b"def f(x):\n    return x\n\n" * 50
    patches = make_patches(wanted.replace(b"\n", b" "), wanted)
    assert len(patches) <= 4 * 150


def test_far_apart_texts_take_time_in_proportion_to_their_length():
    found, wanted = bytes(range(256)) * 400, bytes(reversed(range(256))) * 400
    patches = make_patches(found, wanted)
    assert apply_patches(found, patches, len(wanted)) == wanted
    assert len(patches) < 1.2 * len(wanted)


@settings(max_examples=100, deadline=None)
@given(found=st.binary(max_size=50), patches=st.binary(max_size=50))
def test_any_bytes_as_patches_give_a_bounded_text_or_are_refused(found, patches):
    with contextlib.suppress(FormatError):
        assert len(apply_patches(found, patches, 60)) <= 60


@pytest.mark.parametrize("value", [0, 127, 128, 300, 2**42 - 1])
def test_numbers_come_back(value):
    assert read_number(b"??" + write_number(value) + b"!", 2) == (
        value,
        2 + len(write_number(value)),
    )


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9])
def test_a_number_without_end_is_refused(data):
    with pytest.raises(FormatError, match="cut short or too large"):
        read_number(data, 0)
