"""One interface to tokenizers: text to ids, ids to text, and the bytes that each id stands for.

Three kinds implement it: SentencePiece models (`data.pieces`), raw bytes (`data.byte_ids`) and
the JSON files of Hugging Face's tokenizers (`data.json_tokenizer`). `Tokenizer.load` tells them
apart by their content. What they lose of a text is `data.losses`' matter.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from speedrun.data.raw_bytes import ByteTable
from speedrun.data.shards import MAX_VOCAB_SIZE, Tokens
from speedrun.errors import TokenizerError


class Tokenizer(ABC):
    """`model` has the bytes of its file, `sha256` their hash.

    Documents start with `bos_id`. `eos_id` is -1 where the vocabulary has no other id to end one.
    """

    file_name: ClassVar[str]
    """What the file is called in a dataset folder."""
    vocab_size: int
    bos_id: int
    eos_id: int

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Read a tokenizer's file, of whichever kind.

        Raises
            TokenizerError: it is missing, unreadable or not one that shards can use.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"cannot read tokenizer {path}: {error.strerror}; fetch or train it again"
            ) from error
        return open_tokenizer(model, source=str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS."""
        return [int(token) for token in self.encode_documents([text])[0][1:]]

    @abstractmethod
    def encode_documents(self, documents: Sequence[str]) -> list[Tokens]:
        """Ids of each document, BOS first and no EOS, as the field's shards hold them.

        Shapes
            result  one (num_tokens,) uint16 per document
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that came from `encode`."""

    @abstractmethod
    def byte_table(self) -> ByteTable:
        """Bytes that each token adds to the text after its predecessor."""

    @property
    def unknown_bytes(self) -> tuple[int, int]:
        """Id that stands for what the alphabet lacks, and bytes it decodes to; (-1, 0) if none."""
        return -1, 0

    def _check_sizes(self, source: str) -> None:
        if not 0 < self.vocab_size <= MAX_VOCAB_SIZE or self.bos_id < 0:
            raise TokenizerError(
                f"{source}: {self.vocab_size:,} pieces and bos_id {self.bos_id}; shards need "
                f"1 to {MAX_VOCAB_SIZE:,} pieces and a BOS piece, so take another tokenizer"
            )


def open_tokenizer(model: bytes, *, source: str) -> Tokenizer:
    """The tokenizer that a file's bytes describe; `source` names it in messages.

    Raises
        TokenizerError: the bytes are none that we know, or one that shards cannot use.
    """
    from speedrun.data.byte_ids import ByteIds
    from speedrun.data.json_tokenizer import JsonTokenizer
    from speedrun.data.pieces import SentencePieces

    if not model.lstrip().startswith(b"{"):
        return SentencePieces(model, source=source)
    try:
        found: Any = json.loads(model)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{source} is damaged: {error}; fetch it again") from error
    if found.get("tokenizer_type") == "pure_byte":
        return ByteIds(model, source=source)
    return JsonTokenizer(model, source=source)


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, path: Path, *, max_bytes: int | None = None
) -> Tokenizer:
    """Train a SentencePiece model that loses nothing; see `data.pieces.train_pieces`.

    Raises
        TokenizerError: the text is too small or too varied for the vocabulary.
        OutputError: the file cannot be written.
    """
    from speedrun.data.pieces import TRAINING_BYTES, train_pieces

    limit = TRAINING_BYTES if max_bytes is None else max_bytes
    return train_pieces(documents, vocab_size, path, max_bytes=limit)
