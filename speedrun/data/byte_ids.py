"""The tokenizer without a vocabulary: every byte is a token, as the field's byte260 has it.

Ids 0 to 3 are pad, BOS, EOS and unknown; byte b is b + 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from speedrun.data.raw_bytes import ByteTable
from speedrun.data.shards import Tokens
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import TokenizerError

FIRST_BYTE = 4
_IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": FIRST_BYTE}
BYTE_MODEL = (
    json.dumps(
        {
            "tokenizer_type": "pure_byte",
            "config": _IDS,
            "vocab_size": 260,
        },
        indent=1,
    )
    + "\n"
).encode()
"""The file of the only such tokenizer there is."""


class ByteIds(Tokenizer):
    """Raw bytes as tokens.

    Raises
        TokenizerError: the file describes another arrangement than the field's.
    """

    file_name = "tokenizer.json"
    vocab_size, bos_id, eos_id = 260, 1, 2

    def __init__(self, model: bytes = BYTE_MODEL, *, source: str = "bytes") -> None:
        super().__init__(model)
        described = json.loads(model)
        config = _IDS | (described.get("config") or {})
        # The field's file may leave out what is the same in all of them.
        found = {key: config[key] for key in _IDS}
        if described.get("vocab_size") != self.vocab_size or found != _IDS:
            raise TokenizerError(
                f"{source}: vocab_size {described.get('vocab_size')} and {found}; "
                f"a byte tokenizer has {self.vocab_size} and {_IDS}"
            )

    def encode_documents(self, documents: Sequence[str]) -> list[Tokens]:
        """See `Tokenizer.encode_documents`."""
        bos = np.array([self.bos_id], dtype=np.uint16)
        return [
            np.concatenate([bos, np.frombuffer(text.encode(), dtype=np.uint8) + np.uint16(4)])
            for text in documents
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 come out as U+FFFD, special ids as nothing."""
        values = (token - FIRST_BYTE for token in ids)
        return bytes(value for value in values if 0 <= value < 256).decode(errors="replace")

    def byte_table(self) -> ByteTable:
        """One byte for each id but the four special ones."""
        is_special = np.arange(self.vocab_size) < FIRST_BYTE
        none = np.zeros(self.vocab_size, dtype=np.bool_)
        return ByteTable((~is_special).astype(np.uint16), none, is_special)
