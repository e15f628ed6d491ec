"""Hugging Face's `tokenizer.json`: byte-level BPE (GPT-2, Qwen) and byte-fallback BPE (Llama).

What a token weighs follows from the file's decoder. One that we do not know is refused, because
bytes that were guessed are what this project is against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from speedrun.data.raw_bytes import ByteTable
from speedrun.data.shards import Tokens
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import TokenizerError

SPACE = "\u2581"
_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>", "[BOS]", "<|im_start|>")
_EOS = ("<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>", "[EOS]", "<|im_end|>")
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class JsonTokenizer(Tokenizer):
    """One `tokenizer.json`.

    BOS is the special token that is usually called so (`<|endoftext|>` in GPT-2), EOS another one.
    Special tokens that stand in a text are text: they must not look like the end of a document.

    Raises
        TokenizerError: the file is damaged, or shards cannot use its decoder, size or BOS.
    """

    file_name = "tokenizer.json"

    def __init__(self, model: bytes, *, source: str) -> None:
        try:
            import tokenizers
        except ImportError:
            raise TokenizerError(
                f"{source} needs the package `tokenizers`; install speedrun[data]"
            ) from None
        super().__init__(model)
        try:
            self._backend = tokenizers.Tokenizer.from_str(model.decode())
            self._described: dict[str, Any] = json.loads(model)
        except Exception as error:
            raise TokenizerError(
                f"{source} is no tokenizer.json: {error}; fetch it again"
            ) from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._added = {
            int(token["id"]): (str(token["content"]), bool(token["special"]))
            for token in self._described.get("added_tokens") or ()
        }
        ids = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        special = {content for content, is_special in self._added.values() if is_special}
        self.bos_id = next((ids[name] for name in _BOS if name in special), -1)
        ends = (ids[name] for name in _EOS if name in special)
        self.eos_id = next((token for token in ends if token != self.bos_id), -1)
        self._check_sizes(source)
        self._decoders = [part["type"] for part in _parts(self._described.get("decoder"))]
        if not {"ByteLevel", "Metaspace", "ByteFallback", "Replace"} & set(self._decoders):
            raise TokenizerError(
                f"{source} decodes by {self._decoders or 'nothing'}, so nobody knows the bytes "
                "of its tokens; take a byte-level or byte-fallback tokenizer"
            )

    def encode_documents(self, documents: Sequence[str]) -> list[Tokens]:
        """See `Tokenizer.encode_documents`."""
        found = self._backend.encode_batch_fast(list(documents), add_special_tokens=False)
        return [np.array([self.bos_id, *each.ids], dtype=np.uint16) for each in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens come out as nothing."""
        return str(self._backend.decode([int(token) for token in ids], skip_special_tokens=True))

    def byte_table(self) -> ByteTable:
        """Bytes of each token, from its string and the decoder.

        Source
            The 256 letters of byte-level BPE: GPT-2, `bytes_to_unicode`.
        """
        base = np.zeros(self.vocab_size, dtype=np.uint16)
        lead = np.zeros(self.vocab_size, dtype=np.bool_)
        boundary = np.ones(self.vocab_size, dtype=np.bool_)
        letters = set(_byte_letters())
        unknown = self.unknown_bytes[0]
        for piece, token in self._backend.get_vocab(with_added_tokens=True).items():
            content, is_special = self._added.get(token, ("", False))
            if is_special or token == unknown:
                continue
            boundary[token] = False
            if content:
                base[token] = len(content.encode())
            elif "ByteLevel" in self._decoders:
                # A piece with any other letter is written as it stands.
                base[token] = len(piece) if letters.issuperset(piece) else len(piece.encode())
            elif "ByteFallback" in self._decoders and _BYTE_PIECE.fullmatch(piece):
                base[token] = 1
            else:
                lead[token] = self._drops_first_space and piece.startswith(SPACE)
                base[token] = len(piece.replace(SPACE, " ").encode()) - int(lead[token])
        return ByteTable(base, lead, boundary)

    @property
    def unknown_bytes(self) -> tuple[int, int]:
        """See `Tokenizer.unknown_bytes`."""
        name = str((self._described.get("model") or {}).get("unk_token") or "")
        token = self._backend.token_to_id(name) if name else None
        if token is None:
            return -1, 0
        return int(token), 0 if self._added.get(token, ("", False))[1] else len(name.encode())

    @cached_property
    def _drops_first_space(self) -> bool:
        """Whether decoding loses a space at the start of a text; asked of the tokenizer itself."""
        for piece, token in self._backend.get_vocab(with_added_tokens=False).items():
            if piece.startswith(SPACE) and token not in self._added:
                return self.decode([token]) != piece.replace(SPACE, " ")
        return True


def _parts(decoder: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return
    if decoder.get("type") == "Sequence":
        for part in decoder.get("decoders") or ():
            yield from _parts(part)
    else:
        yield decoder


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself if it can be printed, else one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
