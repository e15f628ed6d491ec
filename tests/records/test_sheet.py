"""Protects whoever opens our CSV in a spreadsheet against what others wrote into it."""

import csv
import io

import pytest

from speedrun.records.sheet import sheet


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n =1"])
def test_text_is_never_a_formula(text):
    (row,) = csv.DictReader(io.StringIO(sheet(["a", "b"], [{"a": text, "b": -1.5}])))
    assert row == {"a": "'" + text.strip(), "b": "-1.5"}


def test_plain_cells_are_as_they_were():
    row = {"name": 'so, "he" said', "val_bpb": -0.25, "seeds": None}
    (read,) = csv.DictReader(io.StringIO(sheet([*row], [row])))
    assert read == {"name": 'so, "he" said', "val_bpb": "-0.25", "seeds": ""}
