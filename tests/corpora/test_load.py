"""Corpus files are read strictly, and the shipped ones are complete."""

import pytest

from speedrun.corpora.load import list_corpora, load_corpus
from speedrun.errors import ConfigError


def test_the_shipped_corpora_load():
    assert [spec.name for spec in list_corpora()] == ["golf-sp1024", "stdlib"]


def test_the_golf_figures_are_the_fields():
    spec = load_corpus("golf-sp1024")
    assert spec.validation_bytes / spec.validation_tokens == pytest.approx(2.435927, abs=1e-6)


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
