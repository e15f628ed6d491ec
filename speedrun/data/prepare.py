"""Documents in memory into a dataset folder: tokenised, split, beside their raw validation text.

The folder appears whole or not at all. What is larger than memory goes through `data.build`, which
must make the same shards: this is the version that can be read at one sitting.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from speedrun.data.dataset import (
    MANIFEST,
    Dataset,
    Manifest,
    RawEntry,
    ShardEntry,
    TokenizerEntry,
    open_dataset,
)
from speedrun.data.raw_bytes import RawText, check_accounting
from speedrun.data.shards import Split, Tokens, write_shard
from speedrun.data.sources import Document, read_lines
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import DataError, OutputError
from speedrun.files import atomic_path, sha256_file, write_atomic

SHARD_TOKENS = 100_000_000
_DOCUMENTS_AT_ONCE = 64


def prepare_dataset(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    out: Path,
    *,
    name: str,
    is_validation: Callable[[str], bool] | None = None,
    validation_count: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    source: str = "",
) -> Dataset:
    """Write a dataset folder and open it.

    Either `is_validation` tells each document's split by its id; documents then stream through in
    their order. Or the first `validation_count` by SHA-256 of the id are validation; documents then
    are held in memory and written in that order. A shard ends with a document, at most a document
    beyond `shard_tokens`.

    Raises
        DataError: a split is empty, an id comes twice, or a text is not Unicode.
        TokenizerError: the tokenizer's byte table disagrees with the text.
        OutputError: `out` is taken or cannot be written.
    """
    assert (is_validation is None) != (validation_count is None)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not an empty folder; remove it or choose another")
    if validation_count is not None:
        documents = _by_hash(documents)
        chosen = {name for name, _ in documents[:validation_count]}
        is_validation = chosen.__contains__
    assert is_validation is not None
    with atomic_path(out) as folder:
        folder.mkdir()
        splits: dict[Split, _Split] = {
            split: _Split(split, folder, tokenizer, shard_tokens) for split in ("train", "val")
        }
        stream = iter(documents)
        while group := list(islice(stream, _DOCUMENTS_AT_ONCE)):
            encoded = tokenizer.encode_documents([_checked(*document) for document in group])
            for (document_id, text), tokens in zip(group, encoded, strict=True):
                split = splits["val" if is_validation(document_id) else "train"]
                split.add(document_id, text, tokens)
        for split in splits.values():
            split.close()
        write_atomic(folder / tokenizer.file_name, tokenizer.model)
        manifest = _manifest(splits["train"], splits["val"], tokenizer, name=name, source=source)
        write_atomic(folder / MANIFEST, manifest.to_json())
    return open_dataset(out)


def read_jsonl(path: Path) -> Iterator[Document]:
    """Documents of a `.jsonl` file, one object with `text` a line; plain, `.zst` or `.gz`.

    The id is the key `id`, or the number of the line, counted from 1.

    Raises
        DataError: the file is missing or damaged, or a line is not such an object; with its number.
    """
    number = 0
    try:
        for number, line in enumerate(read_lines(Path(path)), start=1):
            if not line.strip():
                continue
            document: Any = json.loads(line)
            text = document.get("text") if isinstance(document, dict) else None
            if not isinstance(text, str):
                raise DataError(
                    f"{path}, line {number:,}: expected an object with a string under 'text', "
                    f"found {line[:40].decode(errors='replace').strip()!r}"
                )
            yield str(document.get("id", number)), text
    except (OSError, EOFError, ValueError, zstandard.ZstdError) as error:
        raise DataError(
            f"cannot read documents from {path} after line {number:,}: {error}; "
            "fetch or write the file again"
        ) from error


@dataclass
class _Split:
    """Documents of one split on their way into shards."""

    split: Split
    folder: Path
    tokenizer: Tokenizer
    shard_tokens: int
    entries: list[ShardEntry] = field(default_factory=list)
    token_bytes: int = 0
    is_lossless: bool = True
    _tokens: list[Tokens] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)
    _texts: list[bytes] = field(default_factory=list)
    _num_tokens: int = 0

    def add(self, document_id: str, text: str, tokens: Tokens) -> None:
        self._tokens.append(tokens)
        self._num_tokens += tokens.size
        if self.split == "val":
            self._ids.append(document_id)
            self._texts.append(text.encode())
            self.is_lossless &= self.tokenizer.decode(tokens[1:].tolist()) == text
        if self._num_tokens >= self.shard_tokens:
            self.close()

    def close(self) -> None:
        """Write what has come since the last shard."""
        if not self._tokens:
            return
        path = self.folder / f"shard_{self.split}_{len(self.entries):06d}.bin"
        tokens = np.concatenate(self._tokens)
        write_shard(path, tokens)
        self.entries.append(
            ShardEntry(
                file=path.name,
                split=self.split,
                tokens=tokens.size,
                documents=len(self._tokens),
                sha256=sha256_file(path),
                raw=self._write_raw(path.with_suffix(".raw"), tokens) if self._texts else None,
            )
        )
        self._tokens, self._ids, self._texts, self._num_tokens = [], [], [], 0

    def _write_raw(self, path: Path, tokens: Tokens) -> RawEntry:
        sizes = tuple(map(len, self._texts))
        raw = RawText(b"".join(self._texts), sizes, self._ids)
        self.token_bytes += check_accounting(
            tokens,
            self.tokenizer.byte_table(),
            raw,
            bos_id=self.tokenizer.bos_id,
            lossless=self.is_lossless,
        ).token_bytes
        write_atomic(path, bytes(raw.data))
        return RawEntry(
            file=path.name,
            sha256=hashlib.sha256(raw.data).hexdigest(),
            document_ids=tuple(self._ids),
            document_bytes=sizes,
        )


def _manifest(
    train: _Split, val: _Split, tokenizer: Tokenizer, *, name: str, source: str
) -> Manifest:
    for part in (train, val):
        if not part.entries:
            raise DataError(
                f"{name}: no document fell into the {part.split} split; "
                "give more documents or change the share of validation"
            )
    return Manifest(
        name=name,
        source=source,
        tokenizer=TokenizerEntry(
            file=tokenizer.file_name,
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
        ),
        train_tokens=sum(entry.tokens for entry in train.entries),
        val_tokens=sum(entry.tokens for entry in val.entries),
        val_raw_bytes=sum(sum(entry.raw.document_bytes) for entry in val.entries if entry.raw),
        val_token_bytes=val.token_bytes,
        lossless=val.is_lossless,
        shards=(*train.entries, *val.entries),
    )


def _by_hash(documents: Iterable[Document]) -> list[Document]:
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document[0].encode()).digest())
    for (one, _), (other, _) in pairwise(ordered):
        if one == other:
            raise DataError(f"document id {one!r} comes twice; ids decide the split, so rename one")
    return ordered


def _checked(document_id: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"document {document_id!r} holds half a surrogate pair at character {error.start:,}, "
            "which UTF-8 cannot say; repair or drop it"
        ) from error
    return text
