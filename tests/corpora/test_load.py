"""Corpus files are read strictly, and the shipped ones are complete."""

import pytest

from speedrun.corpora.load import list_corpora, load_corpus
from speedrun.errors import ConfigError

GOLF = ["golf-byte260", "golf-sp1024", "golf-sp4096", "golf-sp8192"]


def test_the_shipped_corpora_load():
    assert [spec.name for spec in list_corpora()] == [*GOLF, "stdlib"]


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("golf-sp1024", 2.435927), ("golf-sp4096", 3.319681), ("golf-sp8192", 3.726631)],
)
def test_the_golf_figures_are_the_fields(name, ratio):
    spec = load_corpus(name)
    assert spec.validation_bytes / spec.validation_tokens == pytest.approx(ratio, abs=1e-6)
    assert spec.bytes_per_token == round(ratio, 4)
    assert spec.repo and spec.prefix == "datasets"


def test_byte_models_need_no_published_figures():
    spec = load_corpus("golf-byte260")
    assert spec.bytes_per_token == 1.0 and spec.vocab_size == 260 and not spec.validation_bytes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('kind = "golf"', "folder is missing"),
        ('kind = "stdlib"', "validation_frac is missing"),
        ('kind = "stdlib"\nvalidation_frac = 1.5', "must be in"),
        ('kind = "parquet"', "kind = 'parquet'"),
        ('kind = "stdlib"\nvalidation_frak = 0.1', "did you mean 'validation_frac'"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path, lines, message):
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\nsummary = ""\nvocab_size = 300\n{lines}\n')
    with pytest.raises(ConfigError, match=message):
        load_corpus(str(path))


def test_an_unknown_corpus_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'stdlib'"):
        load_corpus("stdlb")
