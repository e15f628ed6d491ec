"""Protects the way from three verified submissions to a folder and a row in the README."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

import speedrun
from speedrun.clock import Ledger, Phase
from speedrun.config import RunConfig
from speedrun.errors import RecordError
from speedrun.files import sha256_file
from speedrun.pack.container import write_container
from speedrun.pack.submission import SubmissionFacts, write_submission
from speedrun.records.filing import Filed, add_record, make_record
from speedrun.records.record import (
    Record,
    Standing,
    compare_records,
    list_records,
    read_record,
    standing_record,
    withdraw,
)
from speedrun.records.table import BEGIN, END, markdown_table, records_table, update_readme
from speedrun.settings import read_toml
from speedrun.tracks.load import RecordRule, Track
from speedrun.verify.verdict import Measurement, RuleResult, Status, Verdict

TRACK = Track(
    name="test",
    version=1,
    summary="",
    train_seconds=60.0,
    eval_seconds=60.0,
    cap_bytes=100_000,
    corpus="none",
    recipe="none",
    hardware="any",
    record=RecordRule(seeds=3, margin_nats_per_token=0.005, p_value=0.01),
)

OLD_KEYS = (
    *("slug", "date", "author", "summary", "track", "track_version", "data_fingerprint"),
    *("num_tokens", "num_bytes", "hardware", "sandboxed", "seeds"),
)
BARE: dict[str, Any] = {
    **{key: "" for key in OLD_KEYS},
    **{"slug": "x", "date": "2026-05-02", "track": "test", "track_version": 0},
    **{"num_tokens": 0, "num_bytes": 0, "sandboxed": False},
}


def entry(folder: Path, seed: int, bpb: float) -> tuple[Path, Verdict]:
    """A submission, as the packer writes it, and a verdict that passed it."""
    run = RunConfig(name="test/run", seed=seed)
    facts = SubmissionFacts(
        name=run.name,
        seed=seed,
        author="Ada",
        date="2026-01-02",
        val_bpb=bpb,
        val_loss=1.0,
        step_stop=10,
        wallclock_seconds=59.5,
        eval_time_seconds=1.0,
        model_params=64,
        hardware="any CPU",
        pytorch_version="2.13.0",
        data_fingerprint="f" * 64,
    )
    log, ledger = folder / "train.log", folder / f"ledger{seed}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"seed {seed}\n")
    Ledger(ledger).append(Phase(name="train", start_s=0.0, stop_s=59.5, on_budget=True))
    out = folder / f"s{seed}"
    write_submission(
        out,
        weights_bytes=write_container([], {"run": run.to_dict()}),
        bundle=b"code",
        facts=facts,
        logs={"train.log": log, "ledger.jsonl": ledger},
        track=TRACK,
    )
    measured = Measurement(
        bpb=bpb,
        nats_per_token=1.0,
        token_bpb=None,
        chunked_bpb=None,
        num_tokens=1_000,
        num_bytes=2_500,
        context=32,
        stride=8,
        kind="fixed",
        eval_seconds=1.0,
        judge_seconds=0.1,
    )
    verdict = Verdict(
        submission=out.name,
        manifest_sha256=sha256_file(out / "manifest.json"),
        track="test",
        track_version=1,
        level="score",
        isolation="bubblewrap",
        machine="here",
        results=(RuleResult(id="metric", status=Status.PASS),),
        measurement=measured,
    )
    return out, verdict


def add(tmp_path: Path, slug: str, scores: list[float], first_seed: int = 1, **more: Any) -> Filed:
    pairs = [entry(tmp_path / slug, first_seed + n, bpb) for n, bpb in enumerate(scores)]
    folders, verdicts = zip(*pairs, strict=True)
    return add_record(
        more.pop("root", tmp_path) / "records",
        folders,
        verdicts,
        TRACK,
        slug=slug,
        summary="One idea.",
        **{"date": "2026-05-02"} | more,
    )


def test_a_record_is_filed_with_everything_beside_it(tmp_path: Path) -> None:
    filed = add(tmp_path, "first", [1.5, 1.51, 1.49])
    record = filed.record
    assert filed.shown is not None and filed.shown.limit == "no standing record"
    assert (record.status, record.level, record.rules_version) == ("record", "score", 2)
    folder = tmp_path / "records" / "test" / "2026-05-02-first"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "recipe.toml", "record.json"),
        *("seed1.ledger.jsonl", "seed1.log", "seed2.ledger.jsonl", "seed2.log"),
        *("seed3.ledger.jsonl", "seed3.log", "verdict.json"),
    ]
    assert list_records(tmp_path / "records", "test") == [record]
    assert (folder / "seed2.log").read_text() == "seed 2\n"
    assert read_toml(folder / "recipe.toml")["name"] == "test/run"
    assert set(json.loads((folder / "verdict.json").read_text())) == {"1", "2", "3"}
    assert "**1.5000 ± 0.0100 (n=3) bpb**" in (folder / "README.md").read_text()


def test_a_better_record_is_taken_and_a_lucky_one_is_not(tmp_path: Path) -> None:
    add(tmp_path, "first", [1.5, 1.501, 1.499])
    with pytest.raises(RecordError, match=r"gain \+0\.0300 bpb, p = .*[0-9]+ more seeds"):
        add(tmp_path, "lucky", [1.40, 1.51, 1.50])
    with pytest.raises(RecordError, match=r"> 0\.0029 bpb"):
        add(tmp_path, "small-step", [1.4975, 1.4976, 1.4974])
    add(tmp_path, "better", [1.48, 1.481, 1.479])
    best, first = list_records(tmp_path / "records", "test")
    assert best.slug == "better"
    # 0.005 nats per token at 2.5 bytes per token, in bits per byte.
    assert compare_records(best, first, TRACK).margin == pytest.approx(0.005 / math.log(2) / 2.5)
    with pytest.raises(RecordError):
        compare_records(best, dataclasses.replace(best, data_fingerprint="e" * 64), TRACK)
    assert not list((tmp_path / "records" / "test").glob("*lucky*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"results": (RuleResult(id="size", status=Status.FAIL),)}, "FAIL"),
        ({"results": (RuleResult(id="data", status=Status.UNDECIDED),)}, "UNDECIDED"),
        ({"measurement": None}, "no score"),
        ({"track_version": 2}, "test v2"),
        ({"manifest_sha256": "0" * 64}, "manifest"),
    ],
)
def test_only_passed_verdicts_on_these_very_files_make_a_record(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    pairs = [entry(tmp_path, seed, 1.5) for seed in (1, 2, 3)]
    folders, verdicts = map(list, zip(*pairs, strict=True))
    verdicts[1] = dataclasses.replace(verdicts[1], **changes)
    with pytest.raises(RecordError, match=said):
        make_record(folders, verdicts, TRACK, slug="x", date="2026-05-02", summary="")


def test_too_few_or_repeated_seeds_and_bad_slugs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="3 seeds"):
        add(tmp_path, "two", [1.5, 1.5])
    pairs = [entry(tmp_path / str(n), 1, 1.5) for n in range(3)]
    folders, verdicts = zip(*pairs, strict=True)
    for slug, said in (("x", "each one once"), ("LR 0.02", "slug")):
        with pytest.raises(RecordError, match=said):
            make_record(folders, verdicts, TRACK, slug=slug, date="2026-05-02", summary="")


def test_the_table_goes_between_the_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    record = add(tmp_path, "first", [1.5, 1.51, 1.49]).record
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{BEGIN}\nold\n{END}\ntext\n")
    table = markdown_table([dataclasses.replace(record, author="A | <b>x")])
    for _ in range(2):
        update_readme(readme, table)
    assert readme.read_text() == f"# Title\n{BEGIN}\n{table}{END}\ntext\n"
    assert "| 1.5000 | 0.0100 | 3 | [first](records/test/2026-05-02-first) |" in table
    assert {line.count("|") for line in table.splitlines()} == {10}
    assert records_table([record]).row_count == 1
    readme.write_text("no markers")
    with pytest.raises(RecordError, match="records:begin"):
        update_readme(readme, table)


def test_a_record_of_the_first_schema_is_read_as_what_it_was(tmp_path: Path) -> None:
    add(tmp_path, "first", [1.5, 1.51, 1.49])
    path = tmp_path / "records" / "test" / "2026-05-02-first" / "record.json"
    values = json.loads(path.read_text())
    old = {key: values[key] for key in OLD_KEYS} | {"schema_version": 1}
    for seed in old["seeds"]:
        del seed["eval_seconds"]
    path.write_text(json.dumps(old))
    record = read_record(path.parent)
    assert (record.status, record.counts, record.schema_version) == ("record", True, 2)
    assert record.val_bpb.mean == pytest.approx(1.5)
    path.write_text(json.dumps(values | {"schema_version": 3}))
    with pytest.raises(RecordError, match="reads up to 2; update"):
        read_record(path.parent)


def test_the_shipped_records_can_be_read() -> None:
    root = Path(speedrun.__file__).parents[1] / "records"
    records = [record for track in root.iterdir() for record in list_records(root, track.name)]
    assert records and all(record.val_bpb.mean > 0 for record in records)


def test_a_withdrawn_record_stands_no_more_and_stays_in_the_table(tmp_path: Path) -> None:
    add(tmp_path, "first", [1.5, 1.501, 1.499])
    add(tmp_path, "better", [1.48, 1.481, 1.479])
    root = tmp_path / "records"
    folder = root / "test" / "2026-05-02-better"
    for reason, date, said in (("", "2026-06-01", "needs a reason"), ("x", "June", "YYYY-MM-DD")):
        with pytest.raises(RecordError, match=said):
            withdraw(folder, reason, date)
    withdraw(folder, "a | clock that stood still", "2026-06-01")
    with pytest.raises(RecordError, match="withdrawn on 2026-06-01 already"):
        withdraw(folder, "again", "2026-06-02")
    records = list_records(root, "test")
    assert [record.slug for record in records] == ["better", "first"]
    standing = standing_record(records, TRACK)
    assert standing is not None and standing.slug == "first"
    assert "| ~~1.4800~~ |" in markdown_table(records)
    assert "withdrawn 2026-06-01: a   clock that stood still" in markdown_table(records)
    # What did not beat the withdrawn one may beat the one before it.
    assert add(tmp_path, "next", [1.485, 1.486, 1.484]).shown is not None


def test_another_version_of_the_rules_or_another_text_begins_anew(tmp_path: Path) -> None:
    add(tmp_path, "first", [1.5, 1.501, 1.499])
    records = list_records(tmp_path / "records", "test")
    assert standing_record(records, TRACK) == records[0]
    assert standing_record(records, dataclasses.replace(TRACK, version=2)) is None
    assert standing_record(records, TRACK, "e" * 64) is None


def test_a_non_record_is_filed_and_never_stands(tmp_path: Path) -> None:
    add(tmp_path, "first", [1.5, 1.501, 1.499])
    filed = add(tmp_path, "odd-idea", [1.4, 1.41], as_non_record=True)
    assert (filed.record.status, filed.shown) == (Standing.NON_RECORD, None)
    standing = standing_record(list_records(tmp_path / "records", "test"), TRACK)
    assert standing is not None and standing.slug == "first"
    assert "filed as a non-record" in (filed.folder / "README.md").read_text()


def test_lineage_names_a_record_that_is_there(tmp_path: Path) -> None:
    first = add(tmp_path, "first", [1.5, 1.501, 1.499]).record
    with pytest.raises(RecordError, match="based on 'nothing', which is no record"):
        add(tmp_path, "better", [1.48, 1.481, 1.479], based_on="nothing")
    filed = add(tmp_path / "again", "better", [1.48, 1.481, 1.479])
    assert filed.record.based_on == ""
    better = add(tmp_path, "best", [1.46, 1.461, 1.459], based_on=first.name).record
    assert better.based_on == "2026-05-02-first"


def test_runs_that_were_not_handed_in_count(tmp_path: Path) -> None:
    add(tmp_path, "first", [1.5, 1.501, 1.499])
    with pytest.raises(RecordError, match=r"2 runs that were not handed in.*every run"):
        add(tmp_path, "chosen", [1.48, 1.481, 1.479], undeclared=[1.52, 1.53])
    with pytest.raises(RecordError, match=r"1 runs were not handed in.*best of 4"):
        add(tmp_path / "b", "unknown", [1.4, 1.6, 1.5], undeclared=[None], root=tmp_path)


def test_a_published_score_is_no_seed_and_no_standing_record() -> None:
    record = Record(
        **(BARE | {"seeds": (), "status": Standing.PUBLISHED, "claimed_bpb": 1.1}),
    )
    assert record.val_bpb.mean == 1.1 and record.largest_bytes is None and not record.counts
    for wrong in ({"claimed_bpb": None}, {"status": Standing.RECORD}):
        with pytest.raises(RecordError):
            dataclasses.replace(record, **wrong)
