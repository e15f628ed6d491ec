"""Protects the way from three verified submissions to a folder and a row in the README."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from speedrun.clock import Ledger, Phase
from speedrun.config import RunConfig
from speedrun.errors import RecordError
from speedrun.files import sha256_file
from speedrun.pack.container import write_container
from speedrun.pack.submission import SubmissionFacts, write_submission
from speedrun.records.filing import Filed, add_record, make_record
from speedrun.records.record import compare_records, list_records
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
        tmp_path / "records",
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
