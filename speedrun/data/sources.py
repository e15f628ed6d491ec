"""Where documents are read from: text, JSON lines and parquet, as a stream of blocks.

A block is a few MB of records, never cut inside one, and the same from run to run: that is what
lets a build be resumed. Records travel undecoded, so that the reader keeps many workers busy.
"""

from __future__ import annotations

import glob
import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from speedrun.errors import DataError

Document = tuple[str, str]
"""Id and text."""
Record = tuple[str, str | None, bytes]
"""Place (`file:number`), id, text; or place, None and a JSON object that holds both."""
Block = list[Record]
SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
BLOCK_BYTES = 2_000_000
TEXT_PIECE_BYTES = 1_000_000
"""A longer `.txt` becomes several documents, cut at ends of lines: it may be larger than memory."""
MAX_RECORD_BYTES = 256_000_000
_CHUNK_BYTES = 1 << 20
_ZSTD_CHUNK_BYTES = 1 << 12  # unpacked, it may be 30,000 times as much


class RecordError(Exception):
    """A record without a readable text; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files that are read one after the other, and their share of a mixture."""

    name: str
    """As it was given."""
    files: tuple[Path, ...]
    weight: float | None = None
    """Share of the text, relative to the other weights; None if this is no mixture."""


def find_source(word: str) -> Source:
    """The files behind `PATH` or `PATH=WEIGHT`; a path is a file, a folder or a pattern.

    Raises
        DataError: there are none, or the weight is no number above zero.
    """
    path, weight = word, None
    if "=" in word and not Path(word).exists():
        path, _, given = word.rpartition("=")
        try:
            weight = float(given)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise DataError(f"source {word!r}: {given!r} is no weight; write PATH=0.6")
    place = Path(path)
    if place.is_dir():
        found = sorted(each for each in place.rglob("*") if each.is_file())
        files = tuple(each for each in found if each.name.endswith(SUFFIXES))
    elif place.is_file():
        files = (place,)
    else:
        files = tuple(Path(each) for each in sorted(glob.glob(path, recursive=True)))  # noqa: PTH207
    wrong = next((each for each in files if not each.name.endswith(SUFFIXES)), None)
    if not files or wrong:
        raise DataError(
            f"source {path!r}: {f'cannot read {wrong.name}' if wrong else 'no such files'}; "
            f"give {', '.join(SUFFIXES)} files, a folder of them or a pattern"
        )
    return Source(name=path, files=files, weight=weight)


def read_blocks(
    source: Source,
    *,
    text_key: str = "text",
    id_key: str = "id",
    block_bytes: int = BLOCK_BYTES,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Iterator[Block]:
    """All records of a source in their order, some `block_bytes` at a time.

    `on_bytes` is told how many bytes of the files have been read since it was last called.

    Raises
        DataError: a file is missing or damaged, or holds a record too long for memory.
    """
    block: Block = []
    size = 0
    for path in source.files:
        for record in _records(path, text_key, id_key, on_bytes):
            block.append(record)
            size += len(record[2])
            if size >= block_bytes:
                yield block
                block, size = [], 0
    if block:
        yield block


def parse(record: Record, *, text_key: str = "text", id_key: str = "id") -> Document:
    """Id and text of a record; the id is its place where it has none.

    Raises
        RecordError: it is no JSON object with a string under `text_key`, or no Unicode.
    """
    place, document_id, content = record
    try:
        if document_id is not None:
            return document_id, content.decode()
        found: Any = json.loads(content)
        text = found.get(text_key) if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise RecordError(
                f"expected an object with a string under {text_key!r}, "
                f"found {content[:40].decode(errors='replace').strip()!r}"
            )
        text.encode()  # half a surrogate pair can be written in JSON, but not in UTF-8
        document_id = str(found.get(id_key, place))
        document_id.encode()
    except (ValueError, RecursionError) as error:
        raise RecordError(f"no readable text: {error}") from error
    return document_id, text


def read_lines(
    path: Path, on_bytes: Callable[[int], object] = lambda count: None
) -> Iterator[bytes]:
    """Lines of a file, without their ends; plain, `.gz` or `.zst`.

    Raises
        OSError, EOFError, zstandard.ZstdError: the file cannot be read or is cut.
        ValueError: a line is too long for memory.
    """
    kept: list[bytes] = []
    size = 0
    for chunk in _chunks(path, on_bytes):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*kept, end)) if kept else end
            kept, size = [], 0
        if rest:
            kept.append(rest)
            size += len(rest)
        if size > MAX_RECORD_BYTES:
            raise ValueError(f"a line of more than {MAX_RECORD_BYTES:,} bytes")
    if kept:
        yield b"".join(kept)


def _records(
    path: Path, text_key: str, id_key: str, on_bytes: Callable[[int], object]
) -> Iterator[Record]:
    number = 0
    rows: Iterator[tuple[str | None, bytes]]
    try:
        if path.name.endswith(".parquet"):
            rows = _parquet_rows(path, text_key, id_key, on_bytes)
        elif path.name.endswith(".txt"):
            rows = _text_pieces(path, on_bytes)
        else:
            rows = ((None, line) for line in read_lines(path, on_bytes) if line.strip())
        for number, (document_id, content) in enumerate(rows, start=1):
            yield f"{path.name}:{number}", document_id, content
    except (OSError, EOFError, ValueError, zstandard.ZstdError) as error:
        raise DataError(
            f"cannot read documents from {path} after number {number:,}: {error}; "
            "fetch or write the file again"
        ) from error


def _text_pieces(
    path: Path, on_bytes: Callable[[int], object]
) -> Iterator[tuple[str | None, bytes]]:
    """A text file as one document, or as several of about a MB."""
    number = 0
    piece: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        # A cut inside a character is possible only in a line that fills a piece by itself.
        while line := file.readline(TEXT_PIECE_BYTES):
            while not line.endswith(b"\n") and (more := _rest_of_character(line, file)):
                line += more
            on_bytes(len(line))
            piece.append(line)
            size += len(line)
            if size >= TEXT_PIECE_BYTES:
                number += 1
                yield (f"{path.name}:{number}" if number > 1 else path.name), b"".join(piece)
                piece, size = [], 0
    if piece or not number:
        number += 1
        yield (f"{path.name}:{number}" if number > 1 else path.name), b"".join(piece)


def _rest_of_character(line: bytes, file: Any) -> bytes:
    """The next byte if it goes on with the last character of `line`, else nothing."""
    following = file.peek(1)[:1]
    return bytes(file.read(1)) if following and following[0] & 0xC0 == 0x80 else b""


def _parquet_rows(
    path: Path, text_key: str, id_key: str, on_bytes: Callable[[int], object]
) -> Iterator[tuple[str | None, bytes]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path.name} needs the package pyarrow; install speedrun[data]") from None
    try:
        # Buffered, a column is read a MB at a time and not a row group at a time.
        with pyarrow.parquet.ParquetFile(path, buffer_size=_CHUNK_BYTES, pre_buffer=False) as table:
            if text_key not in table.schema_arrow.names:
                raise ValueError(f"no column {text_key!r}, only {table.schema_arrow.names}")
            columns = [key for key in (text_key, id_key) if key in table.schema_arrow.names]
            number, size = 0, path.stat().st_size
            for batch in table.iter_batches(batch_size=256, columns=columns):
                texts = batch.column(text_key).to_pylist()
                ids = batch.column(id_key).to_pylist() if id_key in columns else [None] * len(texts)
                for document_id, text in zip(ids, texts, strict=True):
                    number += 1
                    if not isinstance(text, str):
                        raise ValueError(f"row {number:,} holds no text but {text!r:.40}")
                    own = f"{path.name}:{number}" if document_id is None else str(document_id)
                    yield own, text.encode()
                on_bytes(size * len(texts) // max(table.metadata.num_rows, 1))
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _chunks(path: Path, on_bytes: Callable[[int], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        if path.suffix == ".gz":
            done = 0
            with gzip.open(file) as unpacked:
                while chunk := unpacked.read(_CHUNK_BYTES):
                    on_bytes(file.tell() - done)
                    done = file.tell()
                    yield chunk
            return
        frame = zstandard.ZstdDecompressor().decompressobj() if path.suffix == ".zst" else None
        packed = b""
        while packed := packed or file.read(_ZSTD_CHUNK_BYTES if frame else _CHUNK_BYTES):
            if frame is None:
                on_bytes(len(packed))
                yield packed
                packed = b""
                continue
            # The library's own reader takes a cut file for a short one.
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            chunk = frame.decompress(packed)
            on_bytes(len(packed) - len(frame.unused_data))
            packed = frame.unused_data
            if chunk:
                yield chunk
        if frame is not None and not frame.eof:
            raise EOFError("the file ends inside a zstd frame")
