"""A dataset is a folder: shards, the raw validation text, the tokenizer and `manifest.json`.

Opening checks what is cheap (names, lengths, the tokenizer's hash); the judge calls
`verify_validation`, which reads everything that a score rests on. Writing one is `prepare`'s work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from speedrun import settings
from speedrun.corpora.load import CorpusSpec
from speedrun.data.byte_ids import FIRST_BYTE
from speedrun.data.raw_bytes import RawText, check_accounting
from speedrun.data.shards import Tokens, list_shards, open_shard
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import ConfigError, DataError, TokenizerError
from speedrun.files import sha256_file

MANIFEST = "manifest.json"
VERSION = 1
_OPTIONAL = {"merkle_root", "train_raw_bytes", "order", "with_eos", "sources"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer that made the shards."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    file: str
    sha256: str
    vocab_size: int
    bos_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEntry:
    """The original text behind one validation shard."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    file: str
    sha256: str
    document_ids: tuple[str, ...]
    document_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard; validation shards bring their text."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    file: str
    split: Literal["train", "val"]
    tokens: int
    documents: int
    sha256: str
    raw: RawEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file that documents were read from."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """One source: its files, and what became of its records."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weight: float | None
    files: tuple[FileEntry, ...]
    records: int
    """Records read, of which some were left out and some were not reached by the mixture."""
    left_out: dict[str, int]
    """Records by the filter that took them out; `duplicate` for texts that came before."""
    documents: int
    """Documents in the dataset."""
    raw_bytes: int
    """Bytes of their text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says; the totals must be the sums over the shards."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    format: Literal["speedrun-dataset"] = "speedrun-dataset"
    version: int = VERSION
    name: str
    source: str
    """Fingerprint of the documents, or where they came from."""
    tokenizer: TokenizerEntry
    train_tokens: int
    val_tokens: int
    val_raw_bytes: int
    val_token_bytes: int
    lossless: bool
    shards: tuple[ShardEntry, ...]
    # From here on what only streamed builds know; left out of the file where it is empty.
    merkle_root: str = ""
    """Of all files but the manifest; see `data.merkle`."""
    train_raw_bytes: int = 0
    order: str = ""
    """How documents were ordered before the split: `hash` of the id, or `stream`."""
    with_eos: bool = False
    """Whether the tokenizer's EOS ends every document."""
    sources: tuple[SourceEntry, ...] = ()

    def to_json(self) -> bytes:
        """Canonical bytes: the same manifest is the same file."""
        values = dataclasses.asdict(self)
        values = {key: value for key, value in values.items() if key not in _OPTIONAL or value}
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False)
        return (text + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and check a manifest by itself.

        Raises
            DataError: it is missing, damaged, of another version, or contradicts itself.
        """
        try:
            values = json.loads(path.read_bytes())
            if not isinstance(values, dict):
                raise DataError(f"{path} holds no JSON object; prepare the dataset again")
            if (found := values.get("version")) != VERSION:
                raise DataError(
                    f"{path} has version {found!r}, only {VERSION} can be read; prepare it again"
                )
            manifest = settings.validate(cls, values, source=str(path))
        except FileNotFoundError:
            raise DataError(f"{path} is missing; prepare the dataset again") from None
        except (OSError, ValueError, RecursionError, ConfigError) as error:
            raise DataError(f"{path} is damaged: {error}; prepare the dataset again") from error
        manifest._check_sums(path)
        return manifest

    def _check_sums(self, path: Path) -> None:
        def total(split: str) -> int:
            return sum(shard.tokens for shard in self.shards if shard.split == split)

        raw = [shard.raw for shard in self.shards if shard.split == "val"]
        raw_bytes = sum(sum(entry.document_bytes) for entry in raw if entry)
        for key, found in {
            "train_tokens": total("train"),
            "val_tokens": total("val"),
            "val_raw_bytes": raw_bytes,
        }.items():
            if getattr(self, key) != found:
                raise DataError(
                    f"{path}: {key} is {getattr(self, key):,}, its shards sum to {found:,}; "
                    "prepare the dataset again"
                )
        if not raw or None in raw:
            raise DataError(
                f"{path}: a validation shard has no raw text; prepare the dataset again"
            )
        names = [shard.file for shard in self.shards] + [entry.file for entry in raw if entry]
        for name in [*names, self.tokenizer.file]:
            if Path(name).name != name or not name:
                raise DataError(f"{path}: {name!r} is not a file name; prepare the dataset again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """An opened dataset. `manifest` is None for a folder in the golf repository's layout."""

    folder: Path
    name: str
    train_shards: list[Path]
    val_shards: list[Path]
    vocab_size: int
    bos_id: int
    tokenizer_path: Path
    fingerprint: str
    """Same fingerprint, same shards: SHA-256 of the manifest (golf: of names and sizes)."""
    manifest: Manifest | None = None
    published: CorpusSpec | None = None
    """Published figures of a golf corpus, which stand in for its raw text."""

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer that made the shards.

        Raises
            TokenizerError: it is missing, altered, or has another vocabulary than the shards.
        """
        tokenizer = Tokenizer.load(self.tokenizer_path)
        if tokenizer.vocab_size != self.vocab_size or tokenizer.bos_id != self.bos_id:
            raise TokenizerError(
                f"{self.tokenizer_path}: {tokenizer.vocab_size:,} pieces and BOS {tokenizer.bos_id}"
                f", the shards of {self.name} were made with {self.vocab_size:,} and {self.bos_id}"
            )
        return tokenizer

    def val_tokens(self) -> Tokens:
        """The validation stream: all validation shards, one after the other.

        A published golf split is cut where the published figures end, in whole sequences.

        Shapes
            result  (num_tokens,)  uint16; the first token is context only, never scored

        Raises
            DataError: a shard is damaged, or the stream is not the published one.
        """
        tokens = np.concatenate([open_shard(path) for path in self.val_shards])
        if self.published is not None and self.published.validation_tokens:
            scored = self.published.validation_tokens
            # The field scores floor((N - 1) / 2048) * 2048 tokens.
            if not scored <= tokens.size - 1 < scored + 2048:
                raise DataError(
                    f"{self.folder}: {tokens.size - 1:,} validation targets, {self.published.name} "
                    f"has {scored:,} in whole sequences; fetch the whole validation split"
                )
            tokens = tokens[: scored + 1]
        return tokens

    @property
    def val_raw_bytes(self) -> int:
        """Bytes of the text behind the validation targets: the denominator of bpb.

        Raises
            DataError: nobody knows, because the folder has neither raw text nor published figures.
        """
        if self.manifest is not None:
            return self.manifest.val_raw_bytes
        return self._published_bytes()

    @property
    def val_token_bytes(self) -> int:
        """The same by the tokenizer's table: smaller where the tokenizer loses text.

        Raises
            DataError: as `val_raw_bytes`.
        """
        if self.manifest is not None:
            return self.manifest.val_token_bytes
        return self._published_bytes()

    def check(self) -> None:
        """Check what is cheap: shards and raw text have their lengths, the tokenizer its hash.

        Raises
            DataError: a shard or a raw text is missing or damaged.
            TokenizerError: the tokenizer is missing or not the one that made the shards.
        """
        shards = [open_shard(path) for path in (*self.train_shards, *self.val_shards)]
        if self.manifest is None:
            return
        for tokens, entry in zip(shards, _in_order(self.manifest), strict=True):
            if tokens.size != entry.tokens:
                raise DataError(
                    f"{self.folder / entry.file}: {tokens.size:,} tokens, the manifest says "
                    f"{entry.tokens:,}; prepare the dataset again"
                )
            if entry.raw is not None:
                _check_size(self.folder / entry.raw.file, sum(entry.raw.document_bytes))
        expected = self.manifest.tokenizer
        try:
            found = sha256_file(self.tokenizer_path)
        except OSError as error:
            raise TokenizerError(
                f"cannot read tokenizer {self.tokenizer_path}: {error.strerror}; "
                "prepare the dataset again"
            ) from error
        if found != expected.sha256:
            raise TokenizerError(
                f"{self.tokenizer_path}: sha256 {found[:12]}..., the shards were made with "
                f"{expected.sha256[:12]}...; put the right tokenizer back or prepare again"
            )

    def verify_validation(self) -> None:
        """Read all that a score rests on: hashes of shards and text, and every document's bytes.

        Raises
            DataError: a file is not the one in the manifest, or the stream not the published one.
            TokenizerError: tokens and text disagree about their bytes.
        """
        self.check()
        table = self.tokenizer().byte_table()
        if self.manifest is None:
            found, expected = table.total(self.val_tokens()), self._published_bytes()
            if found != expected:
                raise TokenizerError(
                    f"{self.folder}: the validation targets have {found:,} bytes by "
                    f"{self.tokenizer_path.name}, published are {expected:,}; fetch both again"
                )
            return
        token_bytes = 0
        for shard in (entry for entry in self.manifest.shards if entry.split == "val"):
            assert shard.raw is not None  # Manifest.read refuses it
            _verify_hash(self.folder / shard.file, shard.sha256)
            _verify_hash(self.folder / shard.raw.file, shard.raw.sha256)
            text = (self.folder / shard.raw.file).read_bytes()
            token_bytes += check_accounting(
                open_shard(self.folder / shard.file),
                table,
                RawText(text, shard.raw.document_bytes, shard.raw.document_ids),
                bos_id=self.bos_id,
                lossless=self.manifest.lossless,
            ).token_bytes
        if token_bytes != self.manifest.val_token_bytes:
            raise DataError(
                f"{self.folder / MANIFEST}: val_token_bytes is {self.manifest.val_token_bytes:,}, "
                f"counted {token_bytes:,}; prepare the dataset again"
            )

    def _published_bytes(self) -> int:
        published = self._published()
        if published.validation_bytes:
            return published.validation_bytes
        # Byte tokens: every target is a byte, but for the few that begin or end a document.
        return int((self.val_tokens()[1:] >= FIRST_BYTE).sum())

    def _published(self) -> CorpusSpec:
        if self.published is None:
            raise DataError(
                f"{self.folder} has no {MANIFEST} and no published figures, so the bytes of its "
                "validation text are unknown; prepare it from its documents"
            )
        return self.published


def open_dataset(folder: Path, *, published: CorpusSpec | None = None) -> Dataset:
    """Open a folder that `prepare` wrote; with `published`, one in the golf repository's layout.

    Raises
        DataError: manifest, shards or tokenizer are missing, damaged or do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; a dataset is a folder with {MANIFEST}")
    dataset = (
        _open_prepared(folder)
        if published is None or (folder / MANIFEST).exists()
        else _open_published(folder, published)
    )
    dataset.check()
    return dataset


def check_vocab(dataset: Dataset, vocab_size: int) -> None:
    """Refuse a model whose alphabet is not the dataset's.

    Raises
        DataError: with both sizes.
    """
    if vocab_size != dataset.vocab_size:
        raise DataError(
            f"model.vocab_size = {vocab_size:,}, {dataset.name} is tokenised with "
            f"{dataset.vocab_size:,} pieces; set model.vocab_size={dataset.vocab_size}"
        )


def _open_prepared(folder: Path) -> Dataset:
    manifest = Manifest.read(folder / MANIFEST)
    ordered = _in_order(manifest)
    return Dataset(
        folder=folder,
        name=manifest.name,
        train_shards=[folder / shard.file for shard in ordered if shard.split == "train"],
        val_shards=[folder / shard.file for shard in ordered if shard.split == "val"],
        vocab_size=manifest.tokenizer.vocab_size,
        bos_id=manifest.tokenizer.bos_id,
        tokenizer_path=folder / manifest.tokenizer.file,
        fingerprint=sha256_file(folder / MANIFEST),
        manifest=manifest,
    )


def _open_published(folder: Path, published: CorpusSpec) -> Dataset:
    train, val = list_shards(folder, "train"), list_shards(folder, "val")
    listing = "".join(f"{path.name} {path.stat().st_size}\n" for path in (*train, *val))
    return Dataset(
        folder=folder,
        name=published.name,
        train_shards=train,
        val_shards=val,
        vocab_size=published.vocab_size,
        bos_id=published.bos_id,
        # data/datasets/<folder>/ and data/tokenizers/ are neighbours there.
        tokenizer_path=folder.parent.parent / "tokenizers" / published.tokenizer,
        fingerprint=hashlib.sha256(listing.encode()).hexdigest(),
        published=published,
    )


def _in_order(manifest: Manifest) -> Sequence[ShardEntry]:
    """Train shards, then validation shards, each by name: the order of `Dataset`'s lists."""
    return sorted(manifest.shards, key=lambda shard: (shard.split, shard.file))


def _check_size(path: Path, expected_bytes: int) -> None:
    try:
        found_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; prepare it again") from error
    if found_bytes != expected_bytes:
        raise DataError(
            f"{path}: {found_bytes:,} bytes, the manifest says {expected_bytes:,}; "
            "prepare the dataset again"
        )


def _verify_hash(path: Path, expected: str) -> None:
    try:
        found: Any = sha256_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; prepare it again") from error
    if found != expected:
        raise DataError(
            f"{path}: sha256 {found[:12]}..., the manifest says {expected[:12]}...; "
            "the file was altered, prepare the dataset again"
        )
