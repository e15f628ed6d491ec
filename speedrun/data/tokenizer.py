"""SentencePiece tokenizers: text to ids and back, and one trained here that loses nothing.

What a token weighs in bytes is `raw_bytes`'s matter; `Tokenizer.byte_table` only reads the pieces.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from speedrun.data.raw_bytes import ByteTable
from speedrun.data.shards import MAX_VOCAB_SIZE, Tokens
from speedrun.errors import TokenizerError
from speedrun.files import write_atomic

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
TRAINING_BYTES = 16_000_000
"""Text a tokenizer is trained on. For a 1,024-piece model of Python source, 30 MB gave 0.7 % more
bytes per token at twice the time."""


class Tokenizer:
    """One SentencePiece model; `model` has its bytes, `sha256` their hash.

    Raises
        TokenizerError: the bytes are no SentencePiece model, or one that shards cannot use.
    """

    def __init__(self, model: bytes, *, source: str) -> None:
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise TokenizerError(
                f"{source} is not a SentencePiece model; fetch or train it again"
            ) from error
        self.vocab_size = int(self._pieces.vocab_size())
        self.bos_id = int(self._pieces.bos_id()) if self.vocab_size else -1
        if not 0 < self.vocab_size <= MAX_VOCAB_SIZE or self.bos_id < 0:
            raise TokenizerError(
                f"{source}: {self.vocab_size:,} pieces and bos_id {self.bos_id}; shards need "
                f"1 to {MAX_VOCAB_SIZE:,} pieces and a BOS piece, so take another tokenizer"
            )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `.model` file.

        Raises
            TokenizerError: it is missing, unreadable or not a model that shards can use.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"cannot read tokenizer {path}: {error.strerror}; fetch or train it again"
            ) from error
        return cls(model, source=str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS."""
        return self._encode([text])[0]

    def encode_documents(self, documents: Sequence[str]) -> list[Tokens]:
        """Ids of each document, BOS first and no EOS, as the field's shards hold them.

        Shapes
            result  one (num_tokens,) uint16 per document
        """
        return [
            np.array([self.bos_id, *ids], dtype=np.uint16) for ids in self._encode(list(documents))
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that came from `encode`."""
        return str(self._pieces.decode([int(token) for token in ids]))

    def byte_table(self) -> ByteTable:
        """Bytes that each token adds to the text.

        Source
            The Parameter Golf evaluation's three tables. Ours differs for models that keep the
            first space of a text and runs of spaces: there a space is a byte like any other.
        """
        base = np.zeros(self.vocab_size, dtype=np.uint16)
        lead = np.zeros(self.vocab_size, dtype=np.bool_)
        boundary = np.zeros(self.vocab_size, dtype=np.bool_)
        pieces = self._pieces
        for token in range(self.vocab_size):
            if pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_unused(token):
                boundary[token] = True
            elif pieces.is_byte(token):
                base[token] = 1
            else:
                piece = str(pieces.id_to_piece(token))
                if self._drops_first_space and piece.startswith(SPACE):
                    lead[token] = True
                    piece = piece[1:]
                base[token] = len(piece.replace(SPACE, " ").encode())
        return ByteTable(base, lead, boundary)

    @cached_property
    def _drops_first_space(self) -> bool:
        """Whether decoding loses a space at the start of a text; asked of the model itself."""
        for token in range(self.vocab_size):
            if str(self._pieces.id_to_piece(token)).startswith(SPACE):
                return not str(self._pieces.decode([token])).startswith(" ")
        return True

    @cached_property
    def _space_sign(self) -> list[int]:
        """The bytes of a literal U+2581, which would come back as a space; empty where that is lost
        anyway: without byte pieces, or in a model whose normaliser changes spaces."""
        ids = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        is_possible = all(map(self._pieces.is_byte, ids)) and not self._drops_first_space
        return ids if is_possible else []

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._pieces.encode(texts, num_threads=-1)
        for index, text in enumerate(texts):
            if SPACE in text and self._space_sign:
                first, *rest = self._pieces.encode(text.split(SPACE))
                encoded[index] = sum(([*self._space_sign, *part] for part in rest), first)
        return encoded


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, path: Path, *, max_bytes: int = TRAINING_BYTES
) -> Tokenizer:
    """Train a BPE model on the first `max_bytes` of text and write it to `path`.

    Nothing is normalised and every character has a way into tokens (bytes, if need be), so decoding
    gives back the text: newlines, indentation and NUL included. Same documents, same file.

    Raises
        TokenizerError: the text is too small or too varied for the vocabulary.
        OutputError: the file cannot be written.

    Source
        SentencePiece BPE: Kudo and Richardson 2018, arXiv:1808.06226.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_first_bytes(documents, max_bytes),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9995,  # ASCII and a few signs; the rest costs bytes, not pieces
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            # Runs of spaces, `self.` and `):\n` become pieces: 2.49 bytes per token instead of 2.43
            # on Python source. A document is one sentence, or newlines would never be learnt.
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,
            max_sentencepiece_length=24,
            max_sentence_length=2**30,
            num_threads=4,  # written into the model, so it must not depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"cannot train {vocab_size:,} pieces for {path}: {error}; "
            "give more text or ask for another vocabulary"
        ) from error
    tokenizer = Tokenizer(model.getvalue(), source=str(path))
    if tokenizer.vocab_size != vocab_size:  # the trainer stops early when there is no more to merge
        raise TokenizerError(
            f"cannot train {vocab_size:,} pieces for {path}: the text yields only "
            f"{tokenizer.vocab_size:,}; give more text or ask for another vocabulary"
        )
    write_atomic(path, tokenizer.model)
    return tokenizer


def _first_bytes(documents: Iterable[str], max_bytes: int) -> Iterator[str]:
    for document in documents:
        if max_bytes <= 0:
            return
        yield document
        max_bytes -= len(document.encode())
