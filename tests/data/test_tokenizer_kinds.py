"""Every kind of tokenizer behind one interface: the bytes of each token in context are exact."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from speedrun.data.byte_ids import BYTE_MODEL, ByteIds
from speedrun.data.losses import PROBES, count_decoded, find_losses, is_space_sound
from speedrun.data.pieces import SentencePieces
from speedrun.data.raw_bytes import RawText, check_accounting
from speedrun.data.tokenizer import Tokenizer, open_tokenizer
from speedrun.errors import TokenizerError

tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
QWEN_SPLIT = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _gpt2(texts: list[str]) -> bytes:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend.to_str().encode()


def _qwen(texts: list[str]) -> bytes:
    """Byte-level with its own split, NFC, and added tokens that are text."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), "isolated")
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, letters])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=390,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([tokenizers.AddedToken("<think é>", special=False, normalized=False)])
    return backend.to_str().encode()


def _llama(texts: list[str]) -> bytes:
    """Space signs, a dummy first one that decoding drops, and byte pieces."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=80,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    described = json.loads(backend.to_str())
    # As in the published file, only the first three are special; bytes are ordinary pieces.
    described["added_tokens"] = described["added_tokens"][:3]
    return json.dumps(described).encode()


@pytest.fixture(scope="module")
def kinds(documents, tokenizer) -> dict[str, Tokenizer]:
    texts = [text for _, text in documents]
    models = {"gpt2": _gpt2(texts), "qwen": _qwen(texts), "llama": _llama(texts)}
    opened = {name: open_tokenizer(model, source=name) for name, model in models.items()}
    return {"bytes": ByteIds(), "pieces": tokenizer, **opened}


KINDS = ["bytes", "pieces", "gpt2", "qwen", "llama"]
ODD = [
    "",
    " ",
    "   def x():\n\n    return  1 \t",
    "é😀\ufeff\u200b\u3000\x7f\x80½™ﬁ a\0b",
    "<s></s><unk><|endoftext|><|im_end|><think é><0x41>",
    "long " * 500,
    "中文 字 \U00010348 \U00010348",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ODD, ids=lambda text: repr(text[:10]))
def test_a_text_comes_back_and_is_counted_to_the_byte(kinds, kind, text):
    check_round_trip(kinds[kind], text)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\0def<s>")))
def test_any_text_comes_back_and_is_counted_to_the_byte(kinds, kind, text):
    check_round_trip(kinds[kind], text.replace("\u2581", ""))


def check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    if "NFC" in tokenizer.model.decode(errors="replace"):
        text = unicodedata.normalize("NFC", text)
    (tokens,) = tokenizer.encode_documents([text])
    assert tokens.dtype == np.uint16 and tokens[0] == tokenizer.bos_id
    assert tokenizer.bos_id not in tokens[1:]
    assert tokens[1:].tolist() == tokenizer.encode(text)
    assert tokenizer.decode(tokens[1:].tolist()) == text
    assert tokenizer.byte_table().total(tokens) == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_weighs_what_its_prefix_grows_by(kinds, kind):
    # The slow and obvious way: decode every prefix. It holds wherever a prefix is whole characters.
    tokenizer, text = kinds[kind], " def width():\n  return the words, naïve é"
    (tokens,) = tokenizer.encode_documents([text])
    counted = tokenizer.byte_table().count(tokens[1:], tokens[:-1]).cumsum()
    grown = [tokenizer.decode(tokens[1 : end + 1].tolist()) for end in range(1, tokens.size)]
    whole = [(a, len(b.encode())) for a, b in zip(counted, grown, strict=True) if "\ufffd" not in b]
    assert len(whole) > 10 and all(a == b for a, b in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_opens_as_its_own_kind(kinds, kind, tmp_path):
    tokenizer = kinds[kind]
    path = tmp_path / tokenizer.file_name
    path.write_bytes(tokenizer.model)
    again = Tokenizer.load(path)
    assert type(again) is type(tokenizer) and again.sha256 == tokenizer.sha256
    assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_the_special_ids_are_those_of_the_families(kinds):
    ids = {name: (kinds[name].bos_id, kinds[name].eos_id) for name in KINDS}
    assert ids["bytes"] == ids["pieces"] == ids["llama"] == (1, 2)
    assert ids["gpt2"] == (0, -1)  # one token for both, so there is none to end a document
    assert ids["qwen"] == (0, 2)


def test_special_tokens_in_a_text_are_text(kinds):
    for name in ("gpt2", "qwen", "llama"):
        ids = kinds[name].encode("a<|endoftext|>b<s></s><|im_end|>")
        assert not {kinds[name].bos_id, kinds[name].eos_id} & set(ids)


def test_byte_pieces_weigh_one_byte_where_decoding_them_alone_shows_three(kinds):
    for name in ("pieces", "llama", "gpt2"):
        tokenizer, text = kinds[name], "\U00010348"
        (tokens,) = tokenizer.encode_documents([text])
        alone = [len(tokenizer.decode([token]).encode()) for token in tokens[1:].tolist()]
        assert tokenizer.byte_table().total(tokens) == 4 < sum(alone)


def test_control_and_unused_pieces_weigh_nothing(kinds, documents):
    for tokenizer in kinds.values():
        table = tokenizer.byte_table()
        for special in {tokenizer.bos_id, tokenizer.eos_id} - {-1}:
            assert table.base[special] == 0 and table.boundary[special]
    model = kinds["pieces"].model.replace(b"\x0a\x03def", b"\x0a\x03def", 1)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    (unused,) = [t for t in range(pieces.vocab_size()) if pieces.id_to_piece(t) == "def"][:1]
    changed = SentencePieces(_with_type(model, "def", 5), source="unused").byte_table()
    assert changed.base[unused] == 0 and changed.boundary[unused]
    assert kinds["pieces"].byte_table().base[unused] == 3


def _with_type(model: bytes, piece: str, kind: int) -> bytes:
    """The model with one piece of another type (3 control, 5 unused), by its protobuf bytes."""
    name = piece.encode()
    start = model.index(bytes([0x0A, len(name)]) + name + b"\x15") - 2
    assert model[start] == 0x0A
    inner = model[start + 2 : start + 2 + model[start + 1]] + bytes([0x18, kind])
    return model[:start] + bytes([0x0A, len(inner)]) + inner + model[start + 2 + model[start + 1] :]


def _renamed(model: bytes, piece: str, other: str) -> bytes:
    """The model with one piece under another name of as many bytes."""
    old, new = piece.encode(), other.encode()
    assert len(old) == len(new)
    tag = bytes([0x0A, len(old)])
    assert model.count(tag + old + b"\x15") == 1
    return model.replace(tag + old + b"\x15", tag + new + b"\x15")


def test_a_model_without_a_piece_for_the_space_is_found(kinds):
    # A lone space then becomes the three bytes of U+2581, each counted: a fifth of bpb for nothing.
    model = _renamed(kinds["pieces"].model, "▁", "\ue000")
    broken = SentencePieces(model, source="broken")
    assert not is_space_sound(broken)
    assert all(is_space_sound(tokenizer) for tokenizer in kinds.values())
    text = "\U00010348 \U00010348"
    (tokens,) = broken.encode_documents([text])
    raw = RawText(text.encode(), (len(text.encode()),), ["doc"])
    with pytest.raises(TokenizerError, match="counts 11 bytes, the text has 9"):
        check_accounting(tokens, broken.byte_table(), raw, bos_id=broken.bos_id, lossless=False)


def test_exact_tokenizers_lose_nothing_of_any_probe(kinds):
    assert [find_losses(kinds[name]) for name in ("bytes", "pieces", "gpt2")] == [[], [], []]
    assert [loss.what for loss in find_losses(kinds["llama"])] == ["U+2581, the space sign"]


def _lossy(documents, **options) -> SentencePieces:
    import io

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for _, text in documents),
        model_writer=model,
        model_type="bpe",
        vocab_size=380,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        minloglevel=2,
        **options,
    )
    return SentencePieces(model.getvalue(), source="lossy")


def test_each_lossy_normaliser_is_reported_with_the_bytes_that_change(kinds, documents):
    named = {loss.what: loss for loss in find_losses(_lossy(documents))}  # NFKC, collapsed spaces
    assert {"runs of spaces", "newlines", "a leading space"} <= named.keys()
    assert (named["runs of spaces"].before, named["runs of spaces"].after) == (
        b"a  b   c",
        b"a b c",
    )
    nfkc = named["compatibility characters (NFKC)"]
    assert nfkc.after.decode() == "fi1\u20442TMA" and "becomes" in str(nfkc)
    assert "capital letters" not in named
    folded = {
        loss.what: loss
        for loss in find_losses(_lossy(documents, normalization_rule_name="nmt_nfkc_cf"))
    }
    assert folded["capital letters"].after == b"abc"
    composed = {loss.what for loss in find_losses(kinds["qwen"])}
    assert composed == {"decomposed accents (NFC)"}


def test_no_probe_is_counted_as_more_than_text_or_decoded_text(kinds, documents):
    for tokenizer in (*kinds.values(), _lossy(documents)):
        assert not [loss for loss in find_losses(tokenizer) if loss.is_miscount]


def test_decoded_bytes_are_those_of_the_table(kinds, documents):
    for tokenizer in (*kinds.values(), _lossy(documents)):
        for _, text in documents[:5]:
            (tokens,) = tokenizer.encode_documents([text])
            assert count_decoded(tokenizer, tokens) == tokenizer.byte_table().total(tokens)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(text=st.text(st.sampled_from(" .,\n\t\u2581\u3000aAbdef▁é½\ufb01e\u0301\0\U00010348")))
def test_word_by_word_is_the_librarys_own_encoding(kinds, text):
    assert kinds["pieces"]._is_separable
    assert kinds["pieces"].encode(text) == kinds["pieces"].encode_slowly(text)


def test_word_by_word_holds_for_normalising_and_for_prefixing_models(documents):
    texts = [text for _, text in documents[:20]] + list(PROBES.values()) + ODD
    for options in ({}, {"normalization_rule_name": "nmt_nfkc_cf"}):
        model = _lossy(documents, **options)
        assert model._is_separable
        assert [model.encode(text) for text in texts] == [model.encode_slowly(t) for t in texts]


def test_pieces_that_reach_across_words_are_encoded_as_a_whole(documents):
    model = _lossy(documents, split_by_whitespace=False)
    assert not model._is_separable
    texts = [text for _, text in documents[:20]]
    assert [model.encode(text) for text in texts] == [model.encode_slowly(t) for t in texts]


def test_text_that_is_no_utf8_shows_as_replacement_but_keeps_its_bytes():
    tokens = np.array([1, 0xFF + 4, ord("a") + 4])
    assert ByteIds().decode(tokens) == "\ufffda"
    assert ByteIds().byte_table().total(tokens) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b'{"tokenizer_type": "pure_byte", "vocab_size": 256}', "vocab_size 256"),
        (BYTE_MODEL.replace(b'"bos_id": 1', b'"bos_id": 0'), "'bos_id': 0"),
        (b'{"version": "1.0"}', "is no tokenizer.json"),
        (b"{", "is damaged"),
        (b'{"a":' * 100_000, "is damaged"),
    ],
)
def test_a_file_of_another_arrangement_is_refused(model, message):
    with pytest.raises(TokenizerError, match=message):
        open_tokenizer(model, source="x")


def test_a_decoder_that_we_do_not_know_is_refused(kinds):
    described = json.loads(kinds["gpt2"].model)
    described["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(TokenizerError, match=r"decodes by .'WordPiece'.*take a byte-level"):
        open_tokenizer(json.dumps(described).encode(), source="x")


def test_a_vocabulary_beyond_uint16_is_refused(kinds):
    described = json.loads(kinds["gpt2"].model)
    token = {"id": 151_642, "content": "<|far|>", "special": True, "normalized": False}
    described["added_tokens"].append(
        token | {"single_word": False, "lstrip": False, "rstrip": False}
    )
    described["model"]["vocab"] |= {f"x{i}": i for i in range(400, 151_642)}
    with pytest.raises(TokenizerError, match=r"151,643 pieces .*1 to 65,536"):
        open_tokenizer(json.dumps(described).encode(), source="x")


@pytest.mark.parametrize("name", ["fineweb_1024_bpe.model", "fineweb_8192_bpe.model"])
def test_the_fields_models_are_sound_and_lossy(name, shared):
    model = Tokenizer.load(shared / "tokenizers" / name)
    assert isinstance(model, SentencePieces) and model._is_separable and is_space_sound(model)
    assert "newlines" in {loss.what for loss in find_losses(model)}
    texts = [*PROBES.values(), *ODD, Path(__file__).read_text(encoding="utf-8")]
    assert [model.encode(text) for text in texts] == [model.encode_slowly(t) for t in texts]
