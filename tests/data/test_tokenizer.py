"""Our own tokenizer loses nothing and counts bytes truly; the field's count as the field does."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.data.stdlib import library_folder
from speedrun.data.tokenizer import Tokenizer, train_tokenizer
from speedrun.errors import OutputError, TokenizerError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
ODD_TEXTS = [
    "",
    " ",
    "  leading and trailing  ",
    "\n\n\n\ttab\r\n",
    "a\0b\0",
    "\u2581already a space sign\u2581 \u2581",
    "\u2585 reserved by the trainer",
    "<s></s><unk><pad><0x41>",
    "é😀\ufeff\u200b\u3000\x7f\x80½™ﬁ",
    "long " * 20_000,
    "x" * 100_000,
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: repr(text[:12]))
def test_odd_texts_come_back_and_are_counted_to_the_byte(tokenizer, text):
    check_round_trip(tokenizer, text)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\u2581\0def")))
def test_any_text_comes_back_and_is_counted_to_the_byte(tokenizer, text):
    check_round_trip(tokenizer, text)


def check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = np.array([tokenizer.bos_id, *ids])
    assert tokenizer.byte_table().total(stream) == len(text.encode())


def test_source_code_comes_back(tokenizer):
    for name in ("argparse.py", "this.py", "json/decoder.py"):
        check_round_trip(tokenizer, (library_folder() / name).read_text(encoding="utf-8"))


def test_pieces_hold_indentation_and_newlines(documents, tokenizer):
    text = "".join(text for _, text in documents)
    pieces = {tokenizer.decode([token]) for token in tokenizer.encode(text)}
    assert "    " in pieces and any(piece.endswith("\n") and len(piece) > 1 for piece in pieces)


def test_documents_start_with_bos_and_have_no_eos(tokenizer):
    first, second = tokenizer.encode_documents(["def", ""])
    assert first.dtype == np.uint16
    assert first.tolist() == [1, *tokenizer.encode("def")]
    assert second.tolist() == [1]


def test_training_twice_gives_the_same_file(documents, tmp_path):
    texts = [text for _, text in documents]
    one, two = (train_tokenizer(texts, 300, tmp_path / name) for name in ("one", "two"))
    assert one.sha256 == two.sha256
    assert Tokenizer.load(tmp_path / "one").sha256 == one.sha256


def test_training_reads_no_more_than_it_needs(tmp_path):
    def endless():
        while True:
            yield "some words and others, again and again\n"

    train_tokenizer(endless(), 290, tmp_path / "model", max_bytes=10_000)


def test_too_little_text_is_an_error_that_names_the_vocabulary(tmp_path):
    with pytest.raises(TokenizerError, match=r"cannot train 1,024 pieces for .*give more text"):
        train_tokenizer(["a\n"], 1024, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_model_is_an_output_error(tmp_path, documents):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        train_tokenizer([text for _, text in documents], 300, tmp_path / "file" / "model")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x0a\x03\x0a\x01a"])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"bad\.model"):
        Tokenizer.load(tmp_path / "bad.model")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"absent\.model: No such file"):
        Tokenizer.load(tmp_path / "absent.model")


@pytest.mark.parametrize("name", ["fineweb_1024_bpe.model", "fineweb_8192_bpe.model"])
def test_the_fields_table_follows_the_fields_rules(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not here")
    model = Tokenizer.load(SHARED / name)
    table = model.byte_table()
    assert not model._space_sign
    for text in ("The quick brown fox, twice: 2 x 2 is 4.", "one two", "(a) b"):
        stream = model.encode_documents([text])[0]
        assert table.total(stream) == len(text.encode())
    the = next(
        token for token in range(model.vocab_size) if model._pieces.id_to_piece(token) == "▁the"
    )
    counts = table.count(np.array([the, the, 1]), np.array([1, the, the]))
    assert counts.tolist() == [3, 4, 0]  # no space after BOS; BOS itself is no text
