"""The oracle: byte counts by a table are held against the text, document by document."""

import numpy as np
import pytest

from speedrun.data.raw_bytes import ByteTable, RawText, check_accounting
from speedrun.errors import TokenizerError

# 0 unknown, 1 BOS, 2 "a", 3 " a" whose space is dropped after a boundary, 4 "ab", 5 a byte
TABLE = ByteTable(
    base=np.array([0, 0, 1, 1, 2, 1], dtype=np.uint16),
    lead=np.array([False, False, False, True, False, False]),
    boundary=np.array([True, True, False, False, False, False]),
)


def raw(*texts: bytes) -> RawText:
    return RawText(b"".join(texts), tuple(map(len, texts)), [f"doc{i}" for i in range(len(texts))])


def check(tokens, text, *, lossless=True, table=TABLE):
    return check_accounting(
        np.array(tokens, dtype=np.uint16), table, text, bos_id=1, lossless=lossless
    )


def test_a_space_counts_unless_its_predecessor_is_a_boundary():
    tokens = np.array([2, 3, 3, 3, 1])
    previous = np.array([1, 2, 1, 0, 4])
    assert TABLE.count(tokens, previous).tolist() == [1, 2, 1, 1, 0]


def test_a_total_in_parts_is_the_sum_of_the_whole():
    stream = np.random.default_rng(0).integers(0, 6, (1 << 22) + 5_000).astype(np.uint16)
    whole = int(TABLE.count(stream[1:], stream[:-1]).sum(dtype=np.int64))
    assert TABLE.total(stream) == whole
    assert TABLE.total(stream[:1]) == TABLE.total(stream[:0]) == 0


def test_an_id_outside_the_table_is_named():
    with pytest.raises(TokenizerError, match="run from 2 to 6, the tokenizer has 6 pieces"):
        TABLE.count(np.array([2, 6]), np.array([1, 2]))


def test_a_lossless_count_agrees_to_the_byte():
    result = check([1, 2, 3, 1, 1, 4, 5], raw(b"a a", b"", b"ab\n"))
    assert (result.raw_bytes, result.token_bytes, result.lossless) == (6, 6, True)


@pytest.mark.parametrize("text", [b"a  a", b"a"])
def test_a_lossless_count_that_is_off_names_the_document(text):
    message = rf"'doc1': the byte table counts 3 bytes, the text has {len(text)}"
    with pytest.raises(TokenizerError, match=message):
        check([1, 2, 1, 2, 3], raw(b"a", text))


def test_two_wrong_documents_do_not_cancel():
    with pytest.raises(TokenizerError, match="'doc0'"):
        check([1, 2, 1, 2, 3], raw(b"aa", b"aa"))


def test_a_lossy_count_may_be_less_and_is_flagged():
    result = check([1, 2, 0, 3], raw(b"a \n # a"), lossless=False)
    assert (result.raw_bytes, result.token_bytes, result.lossless) == (7, 2, False)


def test_a_lossy_count_may_grow_as_far_as_nfkc_goes():
    one_third = (
        "\u2153".encode()
    )  # three bytes; NFKC makes it 1, a fraction slash of three bytes, 3
    assert check([1, 4, 4, 5], raw(one_third), lossless=False).token_bytes == 5
    with pytest.raises(TokenizerError, match=r"counts 6 bytes, the text has 3 \(5 after NFKC\)"):
        check([1, 4, 4, 4], raw(one_third), lossless=False)


def test_a_table_that_counts_the_space_twice_is_caught():
    wrong = ByteTable(TABLE.base + TABLE.lead.astype(np.uint16), TABLE.lead, TABLE.boundary)
    with pytest.raises(TokenizerError, match="counts 5 bytes, the text has 4"):
        check([1, 4, 3], raw(b"ab a"), lossless=False, table=wrong)


@pytest.mark.parametrize("tokens", [[1, 2], [1, 2, 1, 2, 1], [2, 1, 2, 1], []])
def test_other_documents_than_the_text_has_are_refused(tokens):
    with pytest.raises(TokenizerError, match="documents in the tokens"):
        check(tokens, raw(b"a", b"a"))


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(TokenizerError, match="raw text has 3 bytes, its documents 2"):
        check([1, 2, 1, 2], RawText(b"aaa", (1, 1), ("x", "y")))
