"""Protects the reader from the files it reads: nothing crashes, hangs, follows links or paints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speedrun.errors import SubmissionError
from speedrun.verify.forensics import dialects, folders
from speedrun.verify.forensics.audit import audit
from speedrun.verify.forensics.dialects import read_log
from speedrun.verify.forensics.findings import Severity


def _only(path: Path) -> dict[str, str]:
    (report,) = audit(path).reports
    return {finding.id: str(finding) for finding in report.findings}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\x02" * 1000,
        b"\xff\xfe\x00",
        b"no log at all\n" * 100,
        b"step:" * 100_000,
        b"val_loss:" + b"9" * 100_000,
    ],
    ids=["empty", "binary", "half-utf16", "prose", "one-long-line", "long-number"],
)
def test_a_file_that_is_no_log_is_undecided(tmp_path, content):
    (tmp_path / "train.log").write_bytes(content)
    assert "unreadable" in _only(tmp_path)
    assert audit(tmp_path).exit_code == 2


def test_a_log_in_utf16_is_read(make):
    record = make("colon")
    name = "train_seed42.log"
    record.files[name] = record.logs.pop(name).encode("utf-16")
    assert record.findings() == []


def test_text_files_that_are_no_logs_are_passed_over(make):
    record = make("colon")
    record.files |= {"requirements.txt": b"torch\n", "notes.txt": b"\x00binary", "README.md": b"#"}
    assert record.findings() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"\x00\x01",
        b'{"a":' * 60_000,
        b"[" * 200_000,
        b'{"a": ' + b"9" * 10_000 + b"}x",
        json.dumps({str(i): i for i in range(5_000)}).encode(),
    ],
    ids=["empty", "cut", "list", "binary", "deep-object", "deep-list", "tail", "many-values"],
)
def test_a_claim_that_is_no_claim_is_undecided(make, content):
    record = make("colon")
    record.claims = {}
    record.files["submission.json"] = content
    found = {finding.id: finding.severity for finding in record.findings()}
    assert found == {"unreadable": Severity.UNDECIDED, "no-claim": Severity.LOOK}


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "9" * 4_000, '"1.1"', "{}", "null"])
def test_a_result_that_is_no_number_is_no_result(make, value):
    record = make("colon")
    text = json.dumps(record.claims, indent=1).replace(
        '"val_bpb": 1.12419,', f'"val_bpb": {value},'
    )
    record.claims = {}
    record.files["submission.json"] = text.encode()
    found = record.ids()
    assert "missing-fields" in found
    assert ("not-a-number" in found) is (value in ("NaN", "-Infinity"))


def test_a_key_that_stands_twice_is_found(make):
    record = make("colon")
    text = json.dumps(record.claims, indent=1)
    record.claims = {}
    record.files["submission.json"] = text.replace("{", '{"val_bpb": 0.9,', 1).encode()
    found = [finding for finding in record.findings() if finding.id == "repeated-key"]
    assert len(found) == 1 and found[0].severity is Severity.CONTRADICTION
    assert "val_bpb" in found[0].found and found[0].line == 6


def test_files_over_the_bound_are_not_read_and_it_is_said(make, monkeypatch):
    monkeypatch.setattr(folders, "MAX_LOG_BYTES", 1_000)
    monkeypatch.setattr(folders, "MAX_CLAIM_BYTES", 100)
    record = make("colon")
    found = [finding for finding in record.findings() if finding.id == "too-large"]
    assert {finding.file for finding in found} == {*record.logs, "submission.json"}
    assert audit(record.folder).exit_code == 2


def test_more_logs_than_the_bound_are_not_read_and_it_is_said(make, monkeypatch):
    monkeypatch.setattr(folders, "MAX_LOGS", 2)
    assert "too-many" in make("colon").ids(Severity.UNDECIDED)


def test_more_lines_than_the_bound_are_not_read_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(dialects, "MAX_LINES", 100)
    (tmp_path / "train.log").write_text("step:1/9 loss:2.0 t:1ms\n" * 100)
    assert "too-large" in _only(tmp_path)
    (tmp_path / "train.log").write_text("step:1/9 loss:2.0 t:1ms\n" * 99)
    assert "too-large" not in _only(tmp_path)


def test_long_names_of_settings_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(dialects, "MAX_SETTINGS", 10)
    log = read_log("".join(f"key{i}: {i}\n" for i in range(100)), "train.log")
    assert len(log.settings) == 10


def test_more_scores_than_the_bound_are_not_read_and_it_is_said(tmp_path):
    (tmp_path / "train.log").write_text("final val_loss:2.0 val_bpb:1.0\n" * 300)
    assert "too-large" in _only(tmp_path)


def test_links_are_not_followed(make, tmp_path):
    record = make("colon")
    folder = record.write()
    secret = tmp_path / "secret.log"
    secret.write_text("step:1/2 train_loss:1.0 train_time:1ms step_avg:1.00ms\n")
    (folder / "linked.log").symlink_to(secret)
    (folder / "loop").symlink_to(folder)
    (folder / "gone.log").symlink_to(tmp_path / "nothing")
    found = audit(folder)
    (report,) = found.reports
    said = {f.file: f.id for f in report.findings}
    assert said == {"linked.log": "not-a-file", "gone.log": "not-a-file"}
    assert any("loop" in note for note in found.notes) and found.exit_code == 2


def test_pipes_do_not_hang_the_reader(make):
    record = make("colon")
    os.mkfifo(record.write() / "train_seed7.log")
    assert record.ids() == {"not-a-file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(make):
    record = make("colon")
    folder = record.write()
    (folder / "train_seed42.log").chmod(0)
    (report,) = audit(folder).reports
    assert "unreadable" in {finding.id for finding in report.findings}


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(SubmissionError, match="no folder and no plain file"):
        audit(tmp_path / "nowhere")
    assert audit(tmp_path).exit_code == 2  # an empty folder: nothing to judge


def test_text_of_others_is_printed_without_its_controls(make):
    record = make("colon")
    evil = "\x1b[2J\x1b]0;owned\x07‮trained on val"
    record.claims["track"] = evil + "\r\n" + "x" * 10_000
    record.claims["author"] = evil
    record.logs["train_seed42\x1b[31m.log"] = record.logs.pop("train_seed42.log")
    (report,) = audit(record.write()).reports
    shown = "\n".join([report.record, *report.logs, *map(str, report.findings)])
    assert "validation-use" in shown and "\\x1b" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
    assert max(map(len, shown.split("\n"))) < 1_500


def test_a_deep_tree_is_cut_off_and_it_is_said(tmp_path):
    deep = tmp_path
    for _ in range(folders.MAX_DEPTH + 3):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert any("depth" in note for note in audit(tmp_path).notes)


def test_a_tree_of_records_is_read_as_records(make, tmp_path):
    first = make("colon")
    first.write()
    second = make("slash")
    second.folder = tmp_path / "track_non_record_16mb" / "2026-04-02_Other"
    second.logs = {f"logs/{name}": text for name, text in second.logs.items()}
    second.write()
    reports = audit(tmp_path).reports
    assert [report.record for report in reports] == [
        "track_10min_16mb/2026-04-01_Idea",
        "track_non_record_16mb/2026-04-02_Other",
    ]
    assert [len(report.logs) for report in reports] == [3, 3]


@pytest.mark.parametrize(
    "line",
    [
        "val " * 1_000,
        "eval " * 800 + "(",
        "total submission size" * 200,
        "collected " * 400,
        "a:1" * 1_300,
        "a: 1 " * 800,
        "trained on the " * 270,
        "stopping_early" + " train_time:" * 330,
        "1/2 " + "x=" * 2_000,
        "val_loader:" + "tokens" * 600,
    ],
)
def test_reading_ends_for_lines_that_make_patterns_backtrack(line):
    assert read_log(f"{line}\n" * 20, "train.log").final is None


numbers = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["0", "1e99", "-1", "nan", "inf", "", "1e-99", "00012", "9" * 30]),
)
lines = st.one_of(
    st.text(max_size=60),
    st.builds(
        "step:{}/{} train_loss:{} train_time:{}ms step_avg:{}ms".format,
        *[numbers] * 5,
    ),
    st.builds("{}/{} train_loss: {} train_time: {}m tok/s: {}".format, *[numbers] * 5),
    st.builds("final_int6 val_loss:{} val_bpb:{} eval_time:{}ms".format, *[numbers] * 3),
    st.builds("stopping_early: wallclock_cap train_time:{}ms step:{}/9".format, *[numbers] * 2),
    st.builds("train_batch_tokens:{} model_params:{} seed:{} world_size:{}".format, *[numbers] * 4),
    st.builds("  gptq_reserve_seconds: {}".format, numbers),
    st.builds("val_tokens: {}".format, numbers),
    st.builds("total_docs:{} total_eval_time:{}s".format, *[numbers] * 2),
    st.builds("Total submission size int8: {} bytes".format, numbers),
    st.builds("Serialized model int8: {} bytes".format, numbers),
    st.builds("Code size: {} bytes".format, numbers),
    st.builds("GPTQ:collected {} Hessians in {}s".format, *[numbers] * 2),
)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("val_bpb", "val_loss", "seeds", "seed_results", "42", "7", "bytes_total"),
                    *("val_bpb_std", "track", "compliance", "train_under_600s", "steps", "seed"),
                    *("eval_time_s", "artifact_bytes_mean", "train_time_max_s", "mean_bpb"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(logs=st.lists(st.lists(lines, max_size=25), max_size=3), claims=values)
@example(logs=[], claims={"val_bpb": {"42": 0.0}})  # a result of a seed that no list declares
def test_whatever_a_record_holds_there_is_a_report(tmp_path_factory, logs, claims):
    folder = tmp_path_factory.mktemp("track_10min_16mb")
    for index, content in enumerate(logs):
        text = "\n".join(content).encode("utf-8", errors="surrogatepass")
        (folder / f"train_seed{index}.log").write_bytes(text)
    (folder / "submission.json").write_text(json.dumps(claims))
    found = audit(folder)
    assert found.exit_code in (0, 1, 2)
    json.dumps(found.to_dict())
    for report in found.reports:
        assert all(str(finding).isprintable() for finding in report.findings)
