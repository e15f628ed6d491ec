"""Protects the judgement of 15 published records: all are read, and what is known of them is found.

The findings are listed, each checked by hand, in `tools/RESULTS.md`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from speedrun.verify.forensics.audit import audit
from speedrun.verify.forensics.findings import Audit, Severity


@pytest.fixture(scope="module")
def published(shared_records: Path) -> Audit:
    return audit(shared_records)


def _found(published: Audit, name: str) -> dict[str, list[str]]:
    (report,) = [report for report in published.reports if name in report.record]
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.severity is not Severity.LOOK:
            found.setdefault(finding.id, []).append(f"{finding.file}:{finding.line}")
    return found


def test_every_record_is_read_and_has_a_track(published):
    assert len(published.reports) == 15 and not published.notes
    assert sum(len(report.logs) for report in published.reports) == 42
    assert all(report.track and report.claims for report in published.reports)
    assert published.count(Severity.UNDECIDED) == 1  # one record has no log


def test_every_finding_stands_at_a_line_that_exists(published, shared_records):
    for report in published.reports:
        for finding in report.findings:
            path = shared_records / report.record / finding.file
            assert path.exists()
            if path.is_file():
                num_lines = len(path.read_text(errors="replace").split("\n"))
                assert 1 <= finding.line <= num_lines


def test_each_log_gives_its_run(published, shared_records):
    from speedrun.verify.forensics.folders import Walk

    for record in Walk(shared_records).records():
        for log in record.logs:
            assert log.final is not None and log.num_steps is not None and log.total is not None
            assert log.train_ms is not None and len(log.steps) >= 7
            assert log.seed is not None or "Legendre" in record.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "NaiveBaseline",
            {"training-time": ["train.log:440"], "too-few-seeds": ["submission.json:8"]},
        ),
        (
            "FP16Embed",
            {
                "training-time": ["train.log:121"],
                "too-few-seeds": ["submission.json:8"],
                "best-seed": ["submission.json:8"],
            },
        ),
        ("74M_Ternary", {"best-seed": ["submission_ternary.json:8"]}),
        ("SDClip_Loop45x2", {}),
        ("MLPClip12", {"best-of-runs": ["submission.json:10"]}),
        (
            "LegalTTT",
            {
                "calibration-time": [
                    *("train_seed314.log:138", "train_seed42.log:140", "train_seed999.log:138")
                ]
            },
        ),
        ("Quasi10B", {}),
        ("LLaDA", {"no-log": [".:0"]}),
        (
            "LegendreGPT",
            {
                "subset": ["train.log:1846"],
                "byte-count": ["submission.json:9", "train.log:1872"],
                "claim-not-in-logs": [f"submission.json:{line}" for line in (8, 9, 14, 15, 16)],
            },
        ),
    ],
)
def test_what_is_known_of_a_record_is_found(published, name, expected):
    found = _found(published, name)
    found = {
        id: [p for p in places if not p.startswith(".:")] or places for id, places in found.items()
    }
    assert found == expected


def test_a_changed_copy_of_a_published_record_is_caught(published, shared_records, tmp_path):
    (source,) = shared_records.glob("*/*SDClip_Loop45x2")
    folder = tmp_path / "track_10min_16mb" / source.name
    folder.mkdir(parents=True)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert audit(folder).exit_code == 0
    log = folder / "train_seed42.log"
    log.write_text(log.read_text().replace("588136ms", "688136ms"))
    (report,) = audit(folder).reports
    assert {finding.id for finding in report.findings} >= {"training-time", "throughput"}
