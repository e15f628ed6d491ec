"""SentencePiece tokenizers: text to ids and back, and one trained here that loses nothing.

Encoding goes word by word through a table of words seen before: a third faster than the library
alone (4.0 against 5.2 MB/s of a core) and equal to it token by token, see `_is_separable`.
"""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from speedrun.data.raw_bytes import ByteTable
from speedrun.data.shards import Tokens
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import TokenizerError
from speedrun.files import write_atomic

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
TRAINING_BYTES = 16_000_000
"""Text a tokenizer is trained on. For a 1,024-piece model of Python source, 30 MB gave 0.7 % more
bytes per token at twice the time."""


_MAX_WORDS = 400_000
_STOP = "."
_UNKNOWN_BYTES = len(" \u2047 ".encode())
"""The library writes an unknown piece as a double question mark between spaces."""


class SentencePieces(Tokenizer):
    """One SentencePiece model.

    Raises
        TokenizerError: the bytes are no SentencePiece model, or one that shards cannot use.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, *, source: str) -> None:
        super().__init__(model)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError) as error:
            raise TokenizerError(
                f"{source} is not a SentencePiece model; fetch or train it again"
            ) from error
        self.vocab_size = int(self._pieces.vocab_size())
        self.bos_id = int(self._pieces.bos_id()) if self.vocab_size else -1
        self.eos_id = int(self._pieces.eos_id()) if self.vocab_size else -1
        self._check_sizes(source)
        self._words: dict[str, bytes | None] = {}

    def encode_documents(self, documents: Sequence[str]) -> list[Tokens]:
        """See `Tokenizer.encode_documents`; ids are those of the library's own `encode`."""
        is_quick = [self._is_separable and SPACE not in text for text in documents]
        pairs = list(zip(documents, is_quick, strict=True))
        quick = iter(self._encode_words([text for text, is_quick in pairs if is_quick]))
        slow = iter(self._encode([text for text, is_quick in pairs if not is_quick]))
        bos = np.array([self.bos_id], dtype=np.uint16)
        return [np.concatenate([bos, next(quick if each else slow)]) for each in is_quick]

    def encode_slowly(self, text: str) -> list[int]:
        """Ids of a text by the library alone, without the table of words: what must come out."""
        return [int(token) for token in self._encode([text])[0]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids that came from `encode`."""
        return str(self._pieces.decode([int(token) for token in ids]))

    @property
    def unknown_bytes(self) -> tuple[int, int]:
        """See `Tokenizer.unknown_bytes`."""
        return int(self._pieces.unk_id()), _UNKNOWN_BYTES

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
            # Compared as a whole: of a piece of two spaces one may be left.
            if (piece := str(self._pieces.id_to_piece(token))).startswith(SPACE):
                return str(self._pieces.decode([token])) != piece.replace(SPACE, " ")
        return True

    @cached_property
    def _space_sign(self) -> list[int]:
        """The bytes of a literal U+2581, which would come back as a space; empty where that is lost
        anyway: without byte pieces, or in a model whose normaliser changes spaces."""
        ids = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        is_possible = all(map(self._pieces.is_byte, ids)) and not self._drops_first_space
        return ids if is_possible else []

    def _encode(self, texts: list[str]) -> list[Tokens]:
        encoded: list[list[int]] = self._pieces.encode(texts, num_threads=1) if texts else []
        for index, text in enumerate(texts):
            if SPACE in text and self._space_sign:
                first, *rest = self._pieces.encode(text.split(SPACE))
                encoded[index] = sum(([*self._space_sign, *part] for part in rest), first)
        return [np.array(ids, dtype=np.uint16) for ids in encoded]

    @cached_property
    def _is_separable(self) -> bool:
        """Whether a text's tokens are those of its words, one after the other.

        Merges only ever make pieces, so none can reach from a word into the next if no piece has
        anything before a space. The stop stands in for the word before: a model may drop spaces
        that nothing precedes.
        """
        pieces = self._pieces
        crosses = re.compile(f"[^{SPACE}]{SPACE}")
        return (
            not any(crosses.search(pieces.id_to_piece(i)) for i in range(self.vocab_size))
            and pieces.unk_id() not in (*pieces.encode(_STOP), pieces.piece_to_id(SPACE))
            and crosses.search(pieces.normalize(f"{_STOP} {_STOP}")) is not None
        )

    def _encode_words(self, texts: list[str]) -> list[Tokens]:
        words = [self._pattern.findall(text) for text in map(self._pieces.normalize, texts)]
        if len(self._words) > _MAX_WORDS:
            self._words = {}
        self._learn(list(set().union(*words).difference(self._words)))
        encoded: list[Tokens] = []
        for text, each in zip(texts, words, strict=True):
            try:
                ids = b"".join(map(self._words.__getitem__, each))  # type: ignore[arg-type]
            except TypeError:  # a word that cannot stand alone
                encoded += self._encode([text])
            else:
                encoded.append(np.frombuffer(ids, dtype=np.uint16))
        return encoded

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Cuts a normalised text where no piece can reach across.

        That is before a space; and, in a model that starts texts as they are, between characters
        that no piece joins. Characters without a piece stay together: their run is one unknown.
        """
        if str(self._pieces.normalize(_STOP)) != _STOP:
            return re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
        bodies = [
            str(self._pieces.id_to_piece(token)).replace(SPACE, "")
            for token in range(self.vocab_size)
            if self._is_text(token)
        ]
        groups: dict[str, set[str]] = {}
        for body in bodies:
            if len(body) > 1:
                joined = set(body).union(*(groups.get(letter, ()) for letter in body))
                groups |= dict.fromkeys(joined, joined)
        runs = {f"[{re.escape(''.join(sorted(group)))}]+" for group in groups.values()}
        known = set().union(*bodies)
        alone = re.escape("".join(sorted(known - groups.keys())))
        # The most frequent group is likely to be the largest: letters.
        choices = [*sorted(runs, key=len, reverse=True), f"[{alone}]" if alone else ""]
        unknown = f"[^{re.escape(''.join(sorted(known)))}{SPACE}]+"
        either = "|".join(filter(None, [*choices, unknown]))
        return re.compile(f"{SPACE}*(?:{either})|{SPACE}+", re.DOTALL)

    def _is_text(self, token: int) -> bool:
        pieces = self._pieces
        return not (pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_byte(token))

    def _learn(self, words: list[str]) -> None:
        """Enter words into the table; None where the library would not see the same word again."""
        for is_led in (True, False):
            group = [word for word in words if word.startswith(SPACE) == is_led]
            first = _STOP if is_led else ""
            plain = [first + word.replace(SPACE, " ") for word in group]
            skipped = self._pieces.encode(first) if is_led else []
            encoded = self._pieces.encode(plain) if plain else []
            for word, ids, same in zip(group, encoded, self._come_back(group, plain), strict=True):
                same = same and ids[: len(skipped)] == skipped
                self._words[word] = array("H", ids[len(skipped) :]).tobytes() if same else None

    def _come_back(self, words: list[str], plain: list[str]) -> list[bool]:
        """Whether normalising each text gives its word again; at best one call for all."""
        normalize = self._pieces.normalize
        joined = _STOP.join(plain)
        stop = str(normalize(_STOP)) if plain and plain[0] != words[0] else ""
        if normalize(joined) == stop + (_STOP + _STOP * bool(stop)).join(words):
            return [True] * len(words)
        return [normalize(text) == stop + word for text, word in zip(plain, words, strict=True)]


def train_pieces(
    documents: Iterable[str], vocab_size: int, path: Path, *, max_bytes: int = TRAINING_BYTES
) -> SentencePieces:
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
    tokenizer = SentencePieces(model.getvalue(), source=str(path))
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
