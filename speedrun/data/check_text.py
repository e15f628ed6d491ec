"""The validation text against its tokens: is it text, do they say it, are the bytes its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speedrun.data.dataset import Manifest, ShardEntry
from speedrun.data.losses import count_decoded
from speedrun.data.raw_bytes import RawText, check_accounting
from speedrun.data.report import Line, compared, undecided
from speedrun.data.shards import Tokens
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import TokenizerError

_DOCUMENTS_AT_ONCE = 64


@dataclass(slots=True)
class _Found:
    """What was seen so far, over all validation shards."""

    ids: list[str] = field(default_factory=list)
    raw_bytes: int = 0
    token_bytes: int = 0
    is_lossless: bool = True
    is_complete: bool = True
    wrong_text: list[str] = field(default_factory=list)
    wrong_decode: list[str] = field(default_factory=list)
    wrong_bytes: list[str] = field(default_factory=list)


def check_text(
    folder: Path, manifest: Manifest, shards: Mapping[str, Tokens], tokenizer: Tokenizer | None
) -> list[Line]:
    """The lines `text`, `decode`, `bytes` and `order` of a prepared dataset.

    `shards` are those that could be opened; without the right tokenizer only the text is checked.
    """
    found = _Found()
    entries = sorted((e for e in manifest.shards if e.split == "val"), key=lambda e: e.file)
    for entry in entries:
        texts = _read_texts(folder, entry, found)
        tokens = shards.get(entry.file)
        if tokens is None or tokenizer is None or texts is None:
            found.is_complete = False
            continue
        _compare(tokenizer, manifest, entry, tokens, texts, found)
    if twice := len(found.ids) - len(set(found.ids)):
        found.wrong_text.append(f"{twice:,} document ids stand there twice")
    what = f"{len(found.ids):,} documents, {found.raw_bytes:,} bytes of UTF-8"
    lines = [compared("text", what, found.wrong_text)]
    if tokenizer is None:
        lines += [undecided(name, "needs the tokenizer") for name in ("decode", "bytes")]
    else:
        lines += _summarize(manifest, found)
    if manifest.order == "hash":
        lines.append(_check_order(found.ids))
    return lines


def _read_texts(
    folder: Path, entry: ShardEntry, found: _Found
) -> list[tuple[str, bytes, str]] | None:
    """Name, bytes and text of each document; None if that is not text."""
    assert entry.raw is not None  # Manifest.read refuses it
    path = folder / entry.raw.file
    try:
        data = path.read_bytes()
        raw = RawText(data, entry.raw.document_bytes, entry.raw.document_ids)
        texts = [(name, content, content.decode()) for name, content in raw.documents()]
    except OSError as error:
        found.wrong_text.append(f"{path.name} cannot be read: {error.strerror}")
        return None
    except (TokenizerError, ValueError) as error:  # lengths that do not add up, or no UTF-8
        found.wrong_text.append(f"{path.name}: {error}")
        return None
    found.ids += [name for name, _, _ in texts]
    found.raw_bytes += len(data)
    return texts


def _compare(
    tokenizer: Tokenizer,
    manifest: Manifest,
    entry: ShardEntry,
    tokens: Tokens,
    texts: Sequence[tuple[str, bytes, str]],
    found: _Found,
) -> None:
    """Each document against a fresh encoding, its decoding, and the table's bytes."""
    table = tokenizer.byte_table()
    if tokens.size and int(tokens.max()) >= table.base.size:
        found.wrong_decode.append(f"{entry.file} has ids that are no pieces")
        found.is_complete = False
        return
    starts = np.flatnonzero(np.asarray(tokens) == tokenizer.bos_id)
    if starts.size != len(texts):
        found.wrong_decode.append(
            f"{entry.file} has {starts.size:,} documents, the text {len(texts):,}"
        )
        found.is_complete = False
        return
    ends = np.append(starts[1:], tokens.size) - int(manifest.with_eos)
    is_lossless = True
    for first in range(0, len(texts), _DOCUMENTS_AT_ONCE):
        group = texts[first : first + _DOCUMENTS_AT_ONCE]
        fresh = tokenizer.encode_documents([text for _, _, text in group])
        for place, ((name, content, _), again) in enumerate(
            zip(group, fresh, strict=True), start=first
        ):
            own = np.asarray(tokens[starts[place] : ends[place]])
            is_lossless &= tokenizer.decode(own[1:].tolist()).encode() == content
            if not np.array_equal(own, again):
                found.wrong_decode.append(f"{name!r} in {entry.file} has other tokens")
            counted, decoded = table.total(own), count_decoded(tokenizer, own)
            # The field's rule does not count the space after an unknown token.
            unknown = int((own == tokenizer.unknown_bytes[0]).sum())
            if not decoded - unknown <= counted <= decoded:
                found.wrong_bytes.append(
                    f"{name!r} has {counted:,} bytes by table, its tokens decode to {decoded:,}"
                )
    assert entry.raw is not None
    data = b"".join(content for _, content, _ in texts)
    raw = RawText(data, entry.raw.document_bytes, entry.raw.document_ids)
    try:
        found.token_bytes += check_accounting(
            tokens, table, raw, bos_id=tokenizer.bos_id, lossless=is_lossless
        ).token_bytes
    except TokenizerError as error:
        found.wrong_bytes.append(str(error))
        found.is_complete = False
    found.is_lossless &= is_lossless


def _summarize(manifest: Manifest, found: _Found) -> list[Line]:
    said = (
        "tokens give back the text"
        if found.is_lossless
        else f"tokens are the tokenizer's own for this text, of which it loses "
        f"{found.raw_bytes - found.token_bytes:,} bytes"
    )
    if found.is_complete:
        for key, value in {
            "val_token_bytes": found.token_bytes,
            "val_raw_bytes": found.raw_bytes,
        }.items():
            if getattr(manifest, key) != value:
                found.wrong_bytes.append(f"{key} is {getattr(manifest, key):,}, counted {value:,}")
        if manifest.lossless != found.is_lossless:
            found.wrong_bytes.append(f"lossless is {manifest.lossless}, it is {found.is_lossless}")
    what = f"{found.token_bytes:,} by table, {found.raw_bytes:,} of text"
    if not found.is_complete and not found.wrong_bytes:
        counted = undecided("bytes", "not all of the validation text could be compared")
    else:
        counted = compared("bytes", what, found.wrong_bytes)
    return [compared("decode", said, found.wrong_decode), counted]


def _check_order(ids: Sequence[str]) -> Line:
    hashes = [hashlib.sha256(name.encode()).digest() for name in ids]
    wrong = [
        f"{ids[place + 1]!r} stands after {ids[place]!r}"
        for place in range(len(ids) - 1)
        if hashes[place] > hashes[place + 1]
    ]
    return compared("order", "validation documents by the hash of their ids", wrong)
