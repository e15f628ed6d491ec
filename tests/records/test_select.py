"""Protects the questions to the runs table: filters, groups that compare, CSV."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from speedrun.errors import RecordError
from speedrun.records.runs import RunRow
from speedrun.records.select import compare_groups, named_runs, runs_csv, select_runs

ROW = RunRow(
    time="2026-01-02T03:04:05+00:00",
    folder="2026-01-02-a-s1",
    recipe="a",
    track="pocket",
    track_version=1,
    seed=1,
    val_bpb=1.0,
    num_bytes=9,
    num_steps=10,
    train_seconds=1.0,
    verdict="PASS",
)


def rows(recipe: str, *scores: float | None, **more: object) -> list[RunRow]:
    return [
        dataclasses.replace(
            ROW, recipe=recipe, seed=seed, val_bpb=score, folder=f"day-{recipe}-s{seed}", **more
        )
        for seed, score in enumerate(scores)
    ]


TABLE = [
    *rows("a", 1.0, 1.01, None),
    *rows("b", 0.9, 0.91, 0.905, verdict="FAIL"),
    *rows("c", 0.5, track="golf", time="2026-02-01T00:00:00+00:00", note="warm start"),
]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({}, 7),
        ({"track": "POCKET"}, 6),
        ({"recipe": "b"}, 3),
        ({"verdict": "fail", "track": "golf"}, 0),
        ({"since": "2026-02"}, 1),
        ({"text": "Warm"}, 1),
        ({"best": 99}, 6),
    ],
)
def test_rows_fit_everything_that_is_asked(question, found):
    assert len(select_runs(TABLE, **question)) == found


def test_the_best_come_first():
    assert [row.val_bpb for row in select_runs(TABLE, track="pocket", best=2)] == [0.9, 0.905]


def test_groups_are_recipes_or_beginnings_of_folders():
    assert len(named_runs(TABLE, "a")) == 2  # one has no score
    assert [row.seed for row in named_runs(TABLE, "day-b-s1")] == [1]
    with pytest.raises(RecordError, match="no scored run"):
        named_runs(TABLE, "x")
    with pytest.raises(RecordError, match="golf v1, pocket v1, which do not compare"):
        named_runs(TABLE, "day")


def test_two_groups_are_tested_as_records_are():
    found = compare_groups(named_runs(TABLE, "b"), named_runs(TABLE, "a"), p_value=0.01)
    assert found.comparison is not None and found.needed is not None
    assert found.comparison.gain == pytest.approx(0.1) and found.first.num_seeds == 3
    alone = compare_groups(named_runs(TABLE, "day-b-s1"), named_runs(TABLE, "a"), p_value=0.01)
    assert alone.comparison is None and alone.needed is None
    with pytest.raises(RecordError, match="golf v1, pocket v1 do not compare"):
        compare_groups(named_runs(TABLE, "a"), named_runs(TABLE, "c"), p_value=0.01)


def test_csv_has_every_column_and_row():
    read = list(csv.DictReader(io.StringIO(runs_csv(TABLE))))
    assert len(read) == 7 and read[0].keys() == {f.name for f in dataclasses.fields(RunRow)}
    assert read[2]["val_bpb"] == "" and read[3]["val_bpb"] == "0.9"
