"""Read a corpus: where its text comes from, its tokenizer, what its validation measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from speedrun import settings
from speedrun.errors import ConfigError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSpec:
    """One corpus. Data, never code."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """What tracks and the command line call it."""
    summary: str
    """One line for lists."""
    kind: Literal["stdlib", "golf"]
    """`stdlib` is built here from the running Python; `golf` is a folder of published shards."""
    vocab_size: int
    """Pieces of the tokenizer."""
    bos_id: int = 1
    """Id that starts every document."""
    validation_frac: float = 0.0
    """Built corpora: share of the documents, by a hash of their names, that is validation."""
    folder: str = ""
    """Published corpora: folder of the shards below `datasets/`."""
    tokenizer: str = ""
    """Published corpora: file below `tokenizers/`."""
    how_to_get: str = ""
    """Published corpora: what to do when the folder is not here."""
    validation_tokens: int = 0
    """Published corpora: targets that the field scores, in whole sequences."""
    validation_bytes: int = 0
    """Published corpora: bytes of text behind these targets."""
    validation_sha256: str = ""
    """Of the validation tokens, uint16 and little-endian, if somebody published it."""
    bytes_per_token: float = 0.0
    """Of the validation targets, to four digits: the fingerprint of tokenizer and split together.
    1.0 for byte tokenizers, where only text counts."""
    repo: str = ""
    """Published corpora: Hugging Face dataset that `data fetch` takes it from."""
    prefix: str = ""
    """Folder in it that holds `manifest.json`, `datasets/` and `tokenizers/`."""
    near_duplicates_are_known: bool = False
    """Validation documents have near copies in training, by the corpus's own definition: a run says
    so but does not refuse."""

    def __post_init__(self) -> None:
        published: tuple[str, ...] = ("folder", "tokenizer", "how_to_get")
        if self.bytes_per_token != 1:  # byte tokens tell their bytes themselves
            published = (*published, "validation_tokens", "validation_bytes")
        for key in published if self.kind == "golf" else ("validation_frac",):
            if not getattr(self, key):
                raise ConfigError(f"{key} is missing; a corpus of kind {self.kind!r} needs it")
        if not 0 <= self.validation_frac < 1:
            raise ConfigError(f"validation_frac = {self.validation_frac}, must be in [0, 1)")


def load_corpus(name: str) -> CorpusSpec:
    """A shipped corpus by name, or a corpus file of the user's own by path.

    Raises
        ConfigError: no such corpus, or a key or value in it is wrong.
    """
    path = settings.find_file(FOLDER, name, kind="corpus")
    return settings.validate(CorpusSpec, settings.read_toml(path), source=path.name)


def list_corpora() -> list[CorpusSpec]:
    """All shipped corpora, by name."""
    return [load_corpus(name) for name in settings.list_names(FOLDER)]
