"""Token shards: the field's `.bin` files, a 1,024-byte header and then uint16 token ids.

Format: `llm.c` and the Parameter Golf repository. 256 little-endian int32 (magic, version, number
of tokens, zeros), then the ids, little-endian; the file ends with the last id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from speedrun.errors import DataError
from speedrun.files import atomic_path

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
MAX_VOCAB_SIZE = 65_536
"""Ids are uint16."""

Split = Literal["train", "val"]
Tokens = NDArray[np.uint16]


def write_shard(path: Path, tokens: NDArray[Any]) -> None:
    """Write one shard in one step.

    Shapes
        tokens  (num_tokens,)  any integer dtype, ids 0..65,535

    Raises
        DataError: tokens are not a vector of ids that fit uint16.
        OutputError: the file cannot be written.
    """
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError(
            f"{path.name}: tokens are {tokens.dtype} of shape {tokens.shape}; "
            "a shard holds one vector of integers"
        )
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < MAX_VOCAB_SIZE:
        raise DataError(
            f"{path.name}: token ids run from {tokens.min():,} to {tokens.max():,}; a shard holds "
            f"0 to {MAX_VOCAB_SIZE - 1:,}, so take a tokenizer of at most {MAX_VOCAB_SIZE:,} pieces"
        )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(shard_header(tokens.size))
        file.write(np.ascontiguousarray(tokens, dtype="<u2").data)


def shard_header(num_tokens: int) -> bytes:
    """The bytes that stand before so many tokens."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, num_tokens
    return header.tobytes()


def open_shard(path: Path) -> Tokens:
    """Map one shard into memory, read-only; pages are read when they are touched.

    Shapes
        result  (num_tokens,)  uint16

    Raises
        DataError: the file is missing, foreign, of another version or not as long as it says.
    """
    try:
        size_bytes = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_BYTES // 4)
    except OSError as error:
        raise DataError(
            f"cannot read shard {path}: {error.strerror}; prepare or fetch the dataset again"
        ) from error
    if header.size < HEADER_BYTES // 4 or header[0] != MAGIC:
        raise DataError(
            f"{path} is not a token shard: it starts with {header[:1].tolist()}, "
            f"a shard with [{MAGIC}] and a header of {HEADER_BYTES:,} bytes"
        )
    if header[1] != VERSION:
        raise DataError(
            f"{path} is a shard of version {header[1]}; only version {VERSION} can be read, "
            "so prepare the dataset again"
        )
    promised = int(header[2])
    if promised < 0 or size_bytes != HEADER_BYTES + 2 * promised:
        raise DataError(
            f"{path}: {(size_bytes - HEADER_BYTES) / 2:,g} tokens, header promises {promised:,}; "
            "the file is cut or damaged, fetch or prepare it again"
        )
    if promised == 0:  # the operating system refuses to map nothing
        return np.empty(0, dtype=np.uint16)
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(promised,))


def list_shards(folder: Path, split: Split) -> list[Path]:
    """Give the shards of one split in their order.

    Raises
        DataError: there are none.
    """
    pattern = f"*_{split}_*.bin"
    # Byte sidecars match the pattern too (`..._val_bytes_000000.bin`) but hold no tokens.
    shards = sorted(
        path
        for path in Path(folder).glob(pattern)
        if "_bytes_" not in path.name and not path.name.startswith(".")
    )
    if not shards:
        raise DataError(
            f"no {split} shards in {folder}: expected files like {pattern}; "
            "check the path, or prepare or fetch the dataset"
        )
    return shards
