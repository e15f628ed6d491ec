r"""Files compressed by a submission's own predictions: any bytes in, the same bytes out.

The text is tokenised, each token is coded with the frequencies that the predictor gave it from the
tokens before, and what the tokenizer lost is patched. Where all this is no shorter than zstd (most
files that are no text), the file is zstd. Headers are small, because 20 kB of text become 2 or 3.

byte   size  content
0      3     89 4C 4D ("\x89LM")
3      1     16 * version (1) + flags: 1 coded, not zstd; 2 patches follow; 4 several streams
4      8     SHA-256 of the text, its first bytes
a zstd file ends with one frame, that states its size; a coded file goes on:
12     4     SHA-256 of train_gpt.py and model.srz together, its first bytes
16     2     SHA-256 of the tokenizer, its first bytes
18     1-5   tokens, without those that only begin a stream (LEB128, as all numbers here)
..           with flag 4: streams; the tokens are cut into so many parts, the first ones longer by
             one where it does not divide
..           with flag 2: bytes of the patches as stored, then they themselves as a zstd frame
..           the code; the streams' tokens take turns
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from speedrun.config import EvalConfig
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import FormatError, SubmissionError
from speedrun.pack.ans import unzstd
from speedrun.predict import Predictor
from speedrun.verify import rules
from speedrun.verify.coding import Decoder, Encoder, Ints
from speedrun.verify.one_by_one import OneByOne
from speedrun.verify.patches import apply_patches, make_patches, read_number, write_number
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import COUNTED, Cell

MAGIC = b"\x89LM"
VERSION = 1
MAX_BYTES = 1 << 26
"""Of a text. A predictor that answers in a millisecond would take a day for so much."""
MAX_STREAMS = 256
PREDICT = ["train_gpt.py", "predict", "model.srz"]
_CODED, _PATCHED, _STREAMS = 1, 2, 4
_TEXT_DIGEST, _MODEL_DIGEST, _TOKENIZER_DIGEST = 8, 4, 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What both directions need of a submission."""

    start: Callable[[], AbstractContextManager[Predictor]]
    """Starts a process that nobody has asked anything."""
    tokenizer: Tokenizer
    evaluation: EvalConfig
    """The windows that it is asked with, as in scoring."""
    sha256: str
    """Of `train_gpt.py` and `model.srz` together."""


def open_model(submission: Path, tokenizer: Tokenizer, *, allow_unsandboxed: bool = False) -> Model:
    """A submission folder as a compressor; its code runs in cells only.

    Raises
        SubmissionError: a counted file is missing or damaged. Later, from `start`: there is no
            sandbox here, and nobody allowed to do without.
    """
    opened, declared = rules.container(submission)
    if declared is None:
        raise SubmissionError(f"{submission}: {opened.evidence}")
    digest = hashlib.sha256()
    try:
        for name in COUNTED:
            digest.update((submission / name).read_bytes())
    except OSError as error:
        raise SubmissionError(f"{submission}: cannot be read: {error}") from error

    @contextmanager
    def start() -> Iterator[Predictor]:
        with (
            Cell(submission, allow_unsandboxed=allow_unsandboxed) as cell,
            RemotePredictor(cell, PREDICT, budget_s=math.inf) as predictor,
        ):
            yield predictor

    return Model(
        start=start,
        tokenizer=tokenizer,
        evaluation=declared.evaluation,
        sha256=digest.hexdigest(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A compressed file, and what its bytes are for."""

    data: bytes
    num_tokens: int
    """Coded tokens; 0 if the file is zstd."""
    code_bytes: int
    patch_bytes: int
    zstd_bytes: int
    """The same text by zstd at level 22."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """A coded file's header, believed to be possible, and where the code begins."""

    num_tokens: int
    num_streams: int
    patches: bytes
    model: bytes
    tokenizer: bytes
    body: int


def compress(
    text: bytes, model: Model, *, streams: int = 1, progress: Progress | None = None
) -> Compressed:
    """Compress any bytes; nothing is lost.

    Args:
        text: At most `MAX_BYTES`.
        model: Whose predictions; a process is started unless the file is no text.
        streams: Parts that are coded side by side in one call each, which is quicker; each begins
            without a past, which costs bytes. One for adaptive predictors.
        progress: Called with (tokens coded, tokens in all).

    Raises
        FormatError: too long.
        PredictorError: the predictor did not answer as it should.
        SubmissionError: model and tokenizer do not belong together, or cannot take turns.
    """
    if len(text) > MAX_BYTES:
        raise FormatError(f"the file has {len(text):,} bytes, the limit is {MAX_BYTES:,}; split it")
    digest = hashlib.sha256(text).digest()[:_TEXT_DIGEST]
    squeezed = _zstd(text)
    plain = Compressed(
        data=_head(0) + digest + squeezed,
        num_tokens=0,
        code_bytes=0,
        patch_bytes=0,
        zstd_bytes=len(squeezed),
    )
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text.decode("utf-8", "ignore"))
    patches = make_patches(tokenizer.decode(ids).encode(), text)
    patches = _zstd(patches) if patches else b""
    if not ids or len(patches) >= len(squeezed):
        return plain
    streams = min(streams, len(ids), MAX_STREAMS)
    texts = _blank(len(ids), streams, tokenizer.bos_id)
    for row, part in zip(texts, np.array_split(ids, streams), strict=True):
        row[1 : 1 + len(part)] = part
    encoder = Encoder()
    with _started(model, streams) as predictor:
        for row, place, weights in _turns(predictor, model, texts, len(ids), progress):
            encoder.put(int(texts[row, place + 1]), weights)
    code = encoder.finish()
    flags = _CODED | (_PATCHED if patches else 0) | (_STREAMS if streams > 1 else 0)
    parts = (
        _head(flags),
        digest,
        bytes.fromhex(model.sha256)[:_MODEL_DIGEST],
        bytes.fromhex(tokenizer.sha256)[:_TOKENIZER_DIGEST],
        write_number(len(ids)),
        write_number(streams) if streams > 1 else b"",
        write_number(len(patches)) + patches if patches else b"",
        code,
    )
    coded = Compressed(
        data=b"".join(parts),
        num_tokens=len(ids),
        code_bytes=len(code),
        patch_bytes=len(patches),
        zstd_bytes=len(squeezed),
    )
    return min(coded, plain, key=lambda made: len(made.data))


def decompress(data: bytes, model: Model, *, progress: Progress | None = None) -> bytes:
    """The bytes that `compress` was given.

    Raises
        FormatError: the file is none of ours, damaged, of another version or model, or the
            predictor does not answer here as it did there.
        PredictorError, SubmissionError: as `compress`.
    """
    flags, digest = _read_head(data)
    if flags & _CODED:
        text = _decode(data, _read_header(data, flags), model, progress)
    else:
        text = _unzstd(data[4 + _TEXT_DIGEST :], MAX_BYTES)
    if hashlib.sha256(text).digest()[:_TEXT_DIGEST] != digest:
        raise FormatError(f"the text came out wrong: {_FOREIGN if flags & _CODED else _DAMAGED}")
    return text


_DAMAGED = "the file is damaged"
_FOREIGN = (
    f"{_DAMAGED}, or the predictor does not answer here as it did where the file was made (another "
    "processor, library or number of threads)"
)


def _decode(data: bytes, header: _Header, model: Model, progress: Progress | None) -> bytes:
    _check_model(header, model)
    tokenizer, streams = model.tokenizer, header.num_streams
    decoder = Decoder(data[header.body :])
    texts = _blank(header.num_tokens, streams, tokenizer.bos_id)
    with _started(model, streams) as predictor:
        for row, place, weights in _turns(predictor, model, texts, header.num_tokens, progress):
            token = decoder.take(weights)
            if token >= tokenizer.vocab_size:
                raise FormatError(f"the code has token {token:,}, which spells nothing: {_FOREIGN}")
            texts[row, place + 1] = token
    short = header.num_tokens % streams  # so many rows are full, if any is not
    ids = [row[1 : len(row) - (0 < short <= number)] for number, row in enumerate(texts)]
    spelled = tokenizer.decode(np.concatenate(ids).tolist()).encode()
    return apply_patches(spelled, header.patches, MAX_BYTES)


def _blank(num_tokens: int, streams: int, bos_id: int) -> np.ndarray:
    """A row for each stream, BOS and room for its tokens; the later rows may have one too much."""
    texts = np.zeros((streams, 1 + -(-num_tokens // streams)), dtype=np.uint16)
    texts[:, 0] = bos_id
    return texts


@contextmanager
def _started(model: Model, streams: int) -> Iterator[Predictor]:
    """A fresh predictor that can do what is wanted."""
    with model.start() as predictor:
        if predictor.vocab_size < model.tokenizer.vocab_size:
            raise SubmissionError(
                f"the predictor knows {predictor.vocab_size:,} tokens, the tokenizer has "
                f"{model.tokenizer.vocab_size:,}; give the data that it was trained on"
            )
        if predictor.kind == "adaptive" and streams > 1:
            raise SubmissionError("an adaptive predictor learns one text at a time: give 1 stream")
        yield predictor


def _turns(
    predictor: Predictor,
    model: Model,
    texts: np.ndarray,
    num_tokens: int,
    progress: Progress | None,
) -> Iterator[tuple[int, int, Ints]]:
    """(row, place, frequencies of the token after it), in the order of the code."""
    asking = OneByOne(
        predictor, texts, context=model.evaluation.context, stride=model.evaluation.stride
    )
    for place in range(texts.shape[1] - 1):
        done = place * len(texts)
        rows = min(len(texts), num_tokens - done)
        for row, weights in enumerate(asking.at(place, rows)):
            yield row, place, weights
        if progress is not None:
            progress(done + rows, num_tokens)


def _head(flags: int) -> bytes:
    return MAGIC + bytes([16 * VERSION + flags])


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=22).compress(data)


def _read_head(data: bytes) -> tuple[int, bytes]:
    """Flags and the text's digest.

    Raises
        FormatError: no such file, or one that this reader does not know.
    """
    if data[:3] != MAGIC:
        raise FormatError(f"not a compressed file of ours: starts with {data[:3]!r}, not {MAGIC!r}")
    if len(data) < 4 + _TEXT_DIGEST:
        raise FormatError(f"a compressed file of {len(data)} bytes is cut short; copy it again")
    version, flags = divmod(data[3], 16)
    if version != VERSION:
        raise FormatError(f"the file has version {version}, this reader knows {VERSION}; update")
    if flags > 7 or flags in (_PATCHED, _STREAMS, _PATCHED | _STREAMS):
        raise FormatError(f"the file has flags {flags}, which mean nothing; it is damaged")
    return flags, data[4 : 4 + _TEXT_DIGEST]


def _read_header(data: bytes, flags: int) -> _Header:
    """The rest of the header of a coded file; nothing large is reserved before this is believed.

    Raises
        FormatError: it is cut short or contradicts itself.
    """
    tokenizer = 4 + _TEXT_DIGEST + _MODEL_DIGEST
    place = tokenizer + _TOKENIZER_DIGEST
    num_tokens, place = read_number(data, place)
    num_streams, patches = 1, b""
    if flags & _STREAMS:
        num_streams, place = read_number(data, place)
    if not 1 <= num_streams <= min(MAX_STREAMS, num_tokens) or num_tokens > MAX_BYTES:
        raise FormatError(
            f"the file has {num_tokens:,} tokens in {num_streams:,} streams, at most "
            f"{MAX_BYTES:,} in {MAX_STREAMS} can be read; it is damaged"
        )
    if flags & _PATCHED:
        stored_bytes, place = read_number(data, place)
        stored = data[place : place + stored_bytes]
        if len(stored) < stored_bytes:
            raise FormatError("the file ends inside its patches; copy it again")
        patches, place = _unzstd(stored, 4 * MAX_BYTES), place + stored_bytes
    return _Header(
        num_tokens=num_tokens,
        num_streams=num_streams,
        patches=patches,
        model=data[4 + _TEXT_DIGEST : tokenizer],
        tokenizer=data[tokenizer : tokenizer + _TOKENIZER_DIGEST],
        body=place,
    )


def _unzstd(frame: bytes, limit_bytes: int) -> bytes:
    """Decompress a frame that states its size, if that is below the limit."""
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise FormatError(f"broken zstd frame: {error}") from error
    if not 0 <= size <= limit_bytes:
        raise FormatError(f"zstd frame of {size:,} bytes, the limit is {limit_bytes:,}")
    return unzstd(frame, size)


def _check_model(header: _Header, model: Model) -> None:
    for what, wanted, digest in (
        ("model", header.model, model.sha256),
        ("tokenizer", header.tokenizer, model.tokenizer.sha256),
    ):
        if not digest.startswith(wanted.hex()):
            raise FormatError(
                f"the file was made with {what} {wanted.hex()}..., this one is "
                f"{digest[: 2 * len(wanted)]}...; give the submission that made it"
            )
