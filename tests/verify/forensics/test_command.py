"""Protects `speedrun verify --logs`: what it prints, its JSON, and its exit codes."""

from __future__ import annotations

import json


def test_a_right_record_passes(make, verify):
    found = verify("--logs", make("colon").write())
    assert found.code == 0 and found.err == ""
    assert "2026-04-01_Idea  (golf-10min-16mb, 3 logs)\n  nothing found\n" in found.out
    assert "1 records, 3 logs: 0 BROKEN, 0 CONTRADICTION, 0 UNDECIDED, 0 LOOK" in found.out


def test_a_broken_rule_is_exit_code_1_with_file_and_line(make, verify):
    record = make("colon")
    record.edit(r"int8\+zlib: 15760000", "int8+zlib: 16000001")
    found = verify("--logs", record.write())
    assert found.code == 1
    line = (
        record.logs["train_seed42.log"]
        .split("\n")
        .index("Total submission size int8+zlib: 16000001 bytes")
    )
    assert (
        f"train_seed42.log:{line + 1}: 16,000,001 bytes, expected at most 16,000,000" in found.out
    )


def test_what_is_only_worth_a_look_is_exit_code_0(make, verify):
    record = make("colon")
    del record.claims["track"]
    found = verify("--logs", record.write())
    assert found.code == 0 and "LOOK" in found.out and "missing-fields" in found.out


def test_nothing_readable_is_exit_code_2(tmp_path, verify):
    found = verify("--logs", tmp_path)
    assert found.code == 2 and "0 records" in found.out
    (tmp_path / "train.log").write_bytes(b"\x00")
    found = verify("--logs", tmp_path)
    assert found.code == 2 and "unreadable" in found.out


def test_json_holds_every_finding(make, verify, tmp_path):
    record = make("colon")
    record.claims["val_bpb"] = 1.0
    out = tmp_path / "audit.json"
    found = verify("--logs", record.write(), "--json", "--out", out)
    assert found.code == 1 and found.err == ""
    printed = json.loads(found.out)
    assert json.loads(out.read_text()) == printed and printed["exit_code"] == 1
    (report,) = printed["reports"]
    assert report["track"] == "golf-10min-16mb"
    assert {"id", "severity", "file", "line", "found", "expected", "sentence"} == set(
        report["findings"][0]
    )


def test_a_track_can_be_named(make, verify, tmp_path):
    record = make("colon", train_ms=650_000.0)
    path = tmp_path / "train.log"
    path.write_text(record.logs["train_seed42.log"])
    assert verify("--logs", path).code == 2
    assert verify("--logs", path, "--track", "golf-10min-16mb").code == 1
    assert verify("--logs", path, "--track", "golf-unlimited-16mb").code == 0


def test_logs_and_a_submission_exclude_each_other(make, verify, tmp_path):
    found = verify(tmp_path, "--logs", tmp_path)
    assert found.code == 2 and "not both" in found.err
    found = verify("--logs", tmp_path / "nowhere")
    assert found.code == 2 and "nowhere is no folder and no plain file" in found.err
