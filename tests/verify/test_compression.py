"""Protects the compressor: every byte comes back, at the price that the predictions promise."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sentencepiece
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speedrun.bpb import score
from speedrun.config import EvalConfig
from speedrun.data.dataset import open_dataset
from speedrun.data.pieces import SentencePieces
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import FormatError, SubmissionError
from speedrun.verify import compression
from speedrun.verify.compression import Model, compress, decompress
from speedrun.verify.patches import make_patches, write_number

PHRASES = (
    "def ",
    "return ",
    "self.",
    "for x in range(9):\n",
    "None",
    "the words ",
    "())\n",
    "    ",
)


def prose(seed: int, num_phrases: int) -> bytes:
    """Text of which a model can know more than zstd finds out."""
    return "".join(random.Random(seed).choices(PHRASES, k=num_phrases)).encode()


TEXT = prose(2, 60)
EVALUATION = EvalConfig(context=64, stride=16, batch_windows=4)


class Counts:
    """How often each token followed the last one, in other text and in the window so far."""

    kind = "fixed"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.pairs = np.full((self.vocab_size, self.vocab_size), 0.01)
        known = tokenizer.encode(prose(1, 300).decode())
        np.add.at(self.pairs, (known[:-1], known[1:]), 1)

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        rows = []
        for row, asked in zip(tokens, scored_from.tolist(), strict=True):
            for t in range(asked, len(row)):
                counts = self.pairs[row[t]].copy()
                np.add.at(counts, row[1 : t + 1][row[:t] == row[t]], 1)
                rows.append(np.log(counts))
        return np.array(rows, np.float32)

    def observe(self, tokens: np.ndarray) -> None:
        raise AssertionError("a fixed predictor is never told")


class Learner(Counts):
    """Keeps its counts beyond the window."""

    kind = "adaptive"

    last = -1

    def observe(self, tokens: np.ndarray) -> None:
        for token in tokens.tolist():
            if self.last >= 0:
                self.pairs[self.last, token] += 1
            self.last = token


class Other(Counts):
    """Another model, which says that it is the first."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.pairs += 0.01 * np.arange(self.vocab_size)


def model_of(tokenizer: Tokenizer, make: Callable[[Tokenizer], Any] = Counts) -> Model:
    return Model(
        start=lambda: contextlib.nullcontext(make(tokenizer)),
        tokenizer=tokenizer,
        evaluation=EVALUATION,
        sha256=hashlib.sha256(make.__name__.encode()).hexdigest(),
    )


@pytest.fixture(name="model", scope="module")
def model_fixture(contest: Any) -> Model:
    return model_of(open_dataset(contest.data).tokenizer())


@pytest.fixture(name="lossy", scope="module")
def lossy_fixture() -> Model:
    """A tokenizer that collapses white space, knows few characters and drops the rest."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose(1, 300).decode().split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=70,
        bos_id=1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model_of(SentencePieces(model.getvalue(), source="test"))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.binary(max_size=200)
    | st.text(max_size=60).map(str.encode)
    | st.lists(st.sampled_from(PHRASES), max_size=60).map(lambda parts: "".join(parts).encode()),
    streams=st.integers(1, 5),
    is_lossy=st.booleans(),
)
def test_any_bytes_come_back(model, lossy, text, streams, is_lossy):
    chosen = lossy if is_lossy else model
    made = compress(text, chosen, streams=streams)
    assert decompress(made.data, chosen) == text
    assert len(made.data) <= 12 + made.zstd_bytes


@pytest.mark.parametrize(
    ("text", "is_coded", "is_patched"),
    [
        (TEXT, True, False),
        (TEXT + b"naive \xff\xfe bytes\n" + TEXT, True, True),
        (TEXT.replace(b"\n", b"\r\n"), True, False),
        ("def ▁ ４²ﬁ ü\u0301 \0 end\n".encode() + TEXT, True, False),
        (b"", False, False),
        (bytes(range(256)) * 5, False, False),
        (np.random.default_rng(1).bytes(3_000), False, False),
    ],
    ids=["text", "invalid", "crlf", "odd", "empty", "binary", "noise"],
)
def test_text_is_coded_and_what_is_none_is_zstd(model, text, is_coded, is_patched):
    made = compress(text, model)
    assert decompress(made.data, model) == text
    assert (made.num_tokens > 0, made.patch_bytes > 0) == (is_coded, is_patched)
    assert made.zstd_bytes == len(zstandard.ZstdCompressor(level=22).compress(text))


def test_what_a_lossy_tokenizer_loses_is_patched(lossy):
    words = b" ".join(prose(3, 300).split())
    text = words[:400] + b"\n\n" + words[400:] + b"  ends with two spaces  \xc3\xa9\xff"
    made = compress(text, lossy)
    assert decompress(made.data, lossy) == text
    assert made.num_tokens > 0 and made.patch_bytes > 0


@pytest.mark.parametrize("make", [Counts, Learner])
def test_the_size_is_what_bpb_predicts_and_twenty_bytes(model, make):
    tokenizer, text = model.tokenizer, prose(3, 120)
    tokens = np.array([tokenizer.bos_id, *tokenizer.encode(text.decode())])
    predicted = score(
        make(tokenizer),
        tokens,
        num_bytes=len(text),
        **dataclasses.asdict(EVALUATION),
    )
    made = compress(text, model_of(tokenizer, make))
    assert made.num_tokens == len(tokens) - 1 > 127
    assert 0 <= made.code_bytes - predicted.bpb * len(text) / 8 <= 1.01
    assert len(made.data) == made.code_bytes + 20
    assert decompress(made.data, model_of(tokenizer, make)) == text


def test_streams_save_calls(model):
    calls: list[tuple[int, ...]] = []

    class Counted(Counts):
        def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
            calls.append(tokens.shape)
            return super().predict(tokens, scored_from)

    spied = model_of(model.tokenizer, Counted)
    one = compress(TEXT, spied)
    assert len(calls) == one.num_tokens
    calls.clear()
    four = compress(TEXT, spied, streams=4)
    assert len(calls) == -(-one.num_tokens // 4) and calls[0] == (4, 1)
    assert len(four.data) > len(one.data)
    assert decompress(four.data, spied) == TEXT


def test_an_adaptive_predictor_has_one_stream(model):
    with pytest.raises(SubmissionError, match="one text at a time"):
        compress(TEXT, model_of(model.tokenizer, Learner), streams=2)


def test_a_predictor_of_a_smaller_alphabet_is_named(model):
    few = Counts(model.tokenizer)
    few.vocab_size = 100
    model = dataclasses.replace(model, start=lambda: contextlib.nullcontext(few))
    with pytest.raises(SubmissionError, match="knows 100 tokens"):
        compress(TEXT, model)


def test_a_file_is_these_bytes(model):
    made = compress(TEXT, model)
    assert made.data[:20] == (
        b"\x89LM\x11"
        + hashlib.sha256(TEXT).digest()[:8]
        + bytes.fromhex(model.sha256)[:4]
        + bytes.fromhex(model.tokenizer.sha256)[:2]
        + write_number(made.num_tokens)
    )
    assert len(made.data) == 20 + made.code_bytes
    stored = compress(b"", model).data
    assert stored[:12] == b"\x89LM\x10" + hashlib.sha256(b"").digest()[:8]
    assert zstandard.decompress(stored[12:]) == b""


def test_another_model_or_tokenizer_is_refused(model, lossy):
    data = compress(TEXT, model).data
    other = dataclasses.replace(model, sha256="ab" * 32)
    with pytest.raises(FormatError, match=r"with model [0-9a-f]{8}\.\.\., this one is abababab"):
        decompress(data, other)
    foreign = dataclasses.replace(model, tokenizer=lossy.tokenizer)
    with pytest.raises(FormatError, match="with tokenizer"):
        decompress(data, foreign)


def test_a_model_that_answers_otherwise_is_noticed(model):
    data = compress(TEXT, model).data
    other = dataclasses.replace(model, start=model_of(model.tokenizer, Other).start)
    with pytest.raises(FormatError, match=r"does not answer here|names no token"):
        decompress(data, other)


def test_every_damaged_byte_is_noticed(model):
    data = compress(prose(2, 20) + b"\xff" + prose(3, 5), model).data
    for place in range(len(data)):
        with pytest.raises(FormatError):
            decompress(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :], model)
    for length in range(0, len(data), 5):
        with pytest.raises(FormatError):
            decompress(data[:length], model)


def coded(model: Model, flags: int, *numbers: int, rest: bytes = b"") -> bytes:
    """A coded file with these numbers behind its digests."""
    ids = bytes.fromhex(model.sha256)[:4] + bytes.fromhex(model.tokenizer.sha256)[:2]
    head = b"\x89LM" + bytes([16 + flags]) + bytes(8) + ids
    return head + b"".join(map(write_number, numbers)) + rest


def bomb(size: int) -> bytes:
    return zstandard.compress(bytes(size), 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: b"\x1f\x8b\x08", "not a compressed file of ours"),
        (lambda m: b"", "not a compressed file of ours"),
        (lambda m: b"\x89LM\x11", "cut short"),
        (lambda m: b"\x89LM\x21" + bytes(40), "version 2"),
        (lambda m: b"\x89LM\x12" + bytes(40), "flags 2"),
        (lambda m: b"\x89LM\x1f" + bytes(40), "flags 15"),
        (lambda m: coded(m, 1, 2**40), "1,099,511,627,776 tokens"),
        (lambda m: coded(m, 1, 0), "0 tokens"),
        (lambda m: coded(m, 5, 10, 11), "11 streams"),
        (lambda m: coded(m, 5, 1000, 300), "300 streams"),
        (lambda m: coded(m, 5, 10, 0), "0 streams"),
        (lambda m: coded(m, 3, 10, 99, rest=b"few"), "inside its patches"),
        (lambda m: coded(m, 3, 10, 5, rest=b"wrong"), "zstd frame"),
        (lambda m: coded(m, 1, rest=b"\xff" * 9), "cut short or too large"),
        (lambda m: b"\x89LM\x10" + bytes(8) + b"no frame", "zstd frame"),
        (lambda m: b"\x89LM\x10" + bytes(8) + bomb(100), "came out wrong"),
    ],
)
def test_a_hostile_file_is_refused(model, make, said):
    with pytest.raises(FormatError, match=said):
        decompress(make(model), model)


def test_nothing_is_unpacked_beyond_the_limit(model, monkeypatch):
    monkeypatch.setattr(compression, "MAX_BYTES", 1_000)
    with pytest.raises(FormatError, match=r"frame of 5,000 bytes, the limit is 1,000"):
        decompress(b"\x89LM\x10" + bytes(8) + bomb(5_000), model)
    frame = bomb(5_000)
    with pytest.raises(FormatError, match=r"frame of 5,000 bytes, the limit is 4,000"):
        decompress(coded(model, 3, 10, len(frame), rest=frame), model)
    frame = zstandard.compress(make_patches(b"", bytes(2_000)), 3)
    with pytest.raises(FormatError, match=r"more than 1,000 bytes"):
        decompress(coded(model, 3, 1, len(frame), rest=frame), model)
    with pytest.raises(FormatError, match=r"1,001 bytes, the limit is 1,000"):
        compress(bytes(1_001), model)


def test_progress_is_told(model):
    told: list[tuple[int, int]] = []
    made = compress(TEXT, model, streams=3, progress=lambda *pair: told.append(pair))
    assert told[-1] == (made.num_tokens, made.num_tokens)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
