"""Protects every check: a right record gives no finding, one wrong figure gives its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from speedrun.tracks.load import load_track
from speedrun.verify.forensics.audit import audit
from speedrun.verify.forensics.findings import Severity

BROKEN, CONTRADICTION = Severity.BROKEN, Severity.CONTRADICTION
LOOK, UNDECIDED = Severity.LOOK, Severity.UNDECIDED
DIALECTS = ("colon", "slash", "ternary")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("split", ["sp1024", "sp8192"])
def test_a_right_record_gives_no_finding(make, dialect, split):
    record = make(dialect, split=split)
    assert record.findings() == []
    assert audit(record.folder).exit_code == 0


def test_our_own_dialect_gives_no_finding_but_on_its_form(make):
    record = make("plain")
    assert record.findings() == []


@pytest.mark.parametrize("dialect", DIALECTS)
def test_claims_may_be_rounded_to_any_digit(make, dialect):
    record = make(dialect)
    record.claims["val_bpb"] = round(record.claims["val_bpb"], 3)
    for entry in record.claims["seed_results"].values():
        entry |= {"val_bpb": round(entry["val_bpb"], 4), "val_loss": round(entry["val_loss"], 3)}
    record.claims["val_bpb_std"] = round(record.claims["val_bpb_std"], 4)
    assert record.findings() == []


def _claim(*path: str, to: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        place = record.claims
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = to(place[path[-1]]) if callable(to) else to

    return change


def _line(pattern: str, new: str, **where: Any) -> Callable[[Any], None]:
    return lambda record: record.edit(pattern, new, **where)


def _drop(*keys: str) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for key in keys:
            del record.claims[key]

    return change


def _add(text: str) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        name = next(iter(record.logs))
        record.logs[name] += text + "\n"

    return change


def _insert(before: str, text: str) -> Callable[[Any], None]:
    return _line(f"(?={before})", text + "\n")


def _copy(source: str, target: str) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        record.logs[target] = record.logs[source]

    return change


def _remove_log(name: str) -> Callable[[Any], None]:
    return lambda record: record.logs.pop(name)


def _rename(source: str, target: str) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        record.logs[target] = record.logs.pop(source)

    return change


def _file(name: str, size: int) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        record.files[name] = b"x" * size

    return change


SPOILED: list[tuple[str, str, Severity, str, Callable[[Any], None]]] = [
    # Budgets and cap.
    (
        "training-time",
        "stop-late",
        BROKEN,
        "colon",
        _line(
            r"stopping_early.*", "stopping_early: wallclock_cap train_time:612000ms step:7057/20000"
        ),
    ),
    (
        "training-time",
        "stop-late",
        BROKEN,
        "slash",
        _line(r"train_time: 599900ms", "train_time: 600001ms"),
    ),
    (
        "steps-after-stop",
        "trained-on",
        BROKEN,
        "colon",
        _insert(
            "peak memory", "step:7400/20000 train_loss:2.1 train_time:629000ms step_avg:85.00ms"
        ),
    ),
    (
        "calibration-time",
        "after-the-clock",
        BROKEN,
        "slash",
        _line("Hessians in 0.1s", "Hessians in 12.7s"),
    ),
    ("evaluation-time", "slow", BROKEN, "colon", _line(r"eval_time:70000ms", "eval_time:700000ms")),
    (
        "evaluation-time",
        "total",
        BROKEN,
        "slash",
        _line(r"total_eval_time:70.0s", "total_eval_time:600.1s"),
    ),
    ("size", "one-byte", BROKEN, "colon", _line(r"int8\+zlib: 15760000", "int8+zlib: 16000001")),
    ("size", "budget-line", BROKEN, "ternary", _line(r"budget:\d+", "budget:16000001")),
    (
        "size-sum",
        "not-the-sum",
        CONTRADICTION,
        "colon",
        _line(r"int8\+zlib: 15760000", "int8+zlib: 15759999"),
    ),
    # Arithmetic.
    (
        "step-times",
        "time-cut",
        CONTRADICTION,
        "colon",
        _line(r"(step:2000/.*train_time:)\d+", r"\g<1>150000"),
    ),
    (
        "step-times",
        "average-cut",
        CONTRADICTION,
        "ternary",
        _line(r"(step:2000/.*avg:)[\d.]+", r"\g<1>70.0"),
    ),
    ("throughput", "speed", CONTRADICTION, "slash", _line(r"(?<=tok/s: )\d+", "9999999", count=99)),
    (
        "throughput",
        "stop",
        CONTRADICTION,
        "slash",
        _line(r"train_time: 599900ms", "train_time: 700000ms"),
    ),
    (
        "speed",
        "too-many-tokens",
        CONTRADICTION,
        "colon",
        _line(r"train_batch_tokens:524288", "train_batch_tokens:524288000"),
    ),
    (
        "steps-backwards",
        "moved",
        CONTRADICTION,
        "colon",
        _insert(
            "peak memory", "step:400/20000 train_loss:2.1 train_time:599950ms step_avg:1499.88ms"
        ),
    ),
    (
        "time-backwards",
        "moved",
        CONTRADICTION,
        "slash",
        _line(r"^(2000/.*train_time: )[\d.]+m", r"\g<1>1.0m"),
    ),
    (
        "steps-beyond",
        "past-the-plan",
        CONTRADICTION,
        "colon",
        _line(r"step:7000/20000", "step:7000/6000"),
    ),
    # Scores.
    (
        "byte-count",
        "space-twice",
        BROKEN,
        "colon",
        _line(r"(sliding_window_exact.*val_bpb:)\S+", r"\g<1>0.96264496"),
    ),
    (
        "one-count",
        "one-line-changed",
        CONTRADICTION,
        "slash",
        _line(r"^(quantized val.*val_bpb:)\S+", r"\g<1>1.05"),
    ),
    ("validation-split", "a-part", BROKEN, "colon", _line(r"tokens:62021632", "tokens:31010816")),
    (
        "validation-split",
        "older-export",
        LOOK,
        "colon",
        _line(r"tokens:62021632", "tokens:63779840"),
    ),
    ("subset", "documents", BROKEN, "slash", _line("total_docs:50000", "total_docs:49000")),
    (
        "subset",
        "fraction",
        BROKEN,
        "slash",
        _line("val_doc_fraction: 1.0", "val_doc_fraction: 0.5"),
    ),
    (
        "subset",
        "limited",
        BROKEN,
        "colon",
        _insert("final_int6_sliding", "eval: 500 batches (limited)"),
    ),
    ("trains-on-val", "files", BROKEN, "slash", _line("fineweb_train_", "fineweb_val_")),
    (
        "validation-use",
        "log",
        LOOK,
        "slash",
        _insert("GPTQ:collecting", "GPTQ calibrates on validation batches"),
    ),
    (
        "validation-use",
        "claim",
        LOOK,
        "colon",
        _claim("author", to="trained on the validation set"),
    ),
    # Seeds.
    ("too-few-seeds", "two", BROKEN, "colon", _remove_log("train_seed999.log")),
    ("seed-without-log", "no-log", CONTRADICTION, "colon", _remove_log("train_seed999.log")),
    ("seed-repeated", "twice", BROKEN, "colon", _claim("seeds", to=[42, 314, 999, 999])),
    ("seed-entries", "one-more", CONTRADICTION, "colon", _claim("seeds", to=[42, 314, 999, 1])),
    (
        "seed-name",
        "renamed",
        CONTRADICTION,
        "colon",
        _rename("train_seed42.log", "train_seed43.log"),
    ),
    ("copied-log", "harmless", LOOK, "colon", _copy("train_seed42.log", "train.log")),
    (
        "copied-log",
        "as-another-seed",
        BROKEN,
        "colon",
        _copy("train_seed42.log", "train_seed43.log"),
    ),
    (
        "scripts-differ",
        "code",
        LOOK,
        "slash",
        _line(r"\(compressed\): 60000", "(compressed): 60001"),
    ),
    ("settings-differ", "rate", LOOK, "slash", _line("  iterations: 20000", "  iterations: 20001")),
    # Claims.
    (
        "claim-not-in-logs",
        "bpb",
        CONTRADICTION,
        "colon",
        _claim("seed_results", "42", "val_bpb", to=1.1134567),
    ),
    (
        "claim-not-in-logs",
        "last-digit",
        CONTRADICTION,
        "slash",
        _claim("seed_results", "42", "val_bpb", to=1.1234568),
    ),
    (
        "claim-not-in-logs",
        "nats",
        CONTRADICTION,
        "colon",
        _claim("seed_results", "42", "val_loss", to=1.8),
    ),
    ("claim-not-in-logs", "bytes", CONTRADICTION, "colon", _claim("bytes_total", to=15_759_999)),
    ("claim-not-in-logs", "code", CONTRADICTION, "colon", _claim("bytes_code", to=59_999)),
    (
        "claim-not-in-logs",
        "steps",
        CONTRADICTION,
        "ternary",
        _claim("seed_results", "314", "steps", to=7_058),
    ),
    (
        "claim-not-in-logs",
        "seconds",
        CONTRADICTION,
        "slash",
        _claim("seed_results", "314", "train_time_s", to=599.8),
    ),
    (
        "claim-not-in-logs",
        "evaluation",
        CONTRADICTION,
        "colon",
        _claim("seed_results", "999", "eval_time_s", to=69.0),
    ),
    ("mean", "not-the-mean", CONTRADICTION, "colon", _claim("val_bpb", to=1.1201)),
    ("spread", "too-small", CONTRADICTION, "colon", _claim("val_bpb_std", to=0.0001)),
    ("best-seed", "best", BROKEN, "colon", _claim("val_bpb", to=1.1234567)),
    ("best-seed", "another", BROKEN, "slash", _claim("val_bpb", to=1.1241234)),
    ("missing-fields", "no-track", LOOK, "colon", _drop("track")),
    (
        "compliance",
        "false-flag",
        LOOK,
        "colon",
        _claim("compliance", "artifact_under_16mb", to=False),
    ),
    # Form of logs, files beside them.
    ("missing-lines", "no-size", LOOK, "ternary", _line(r"^(artifact|budget).*\n", "", count=2)),
    (
        "partial-run",
        "resumed",
        LOOK,
        "colon",
        _insert("step:500/", "Resuming from checkpoint: c.pt"),
    ),
    ("code-on-disk", "other-script", LOOK, "colon", _file("train_gpt.py", 59_998)),
    ("model-on-disk", "other-weights", CONTRADICTION, "colon", _file("final_model.int6.ptz", 999)),
]


@pytest.mark.parametrize(
    ("id", "severity", "dialect", "spoil"),
    [pytest.param(*case[:1], *case[2:], id=f"{case[0]}-{case[1]}-{case[3]}") for case in SPOILED],
)
def test_one_wrong_figure_gives_its_own_finding(make, id, severity, dialect, spoil):
    record = make(dialect)
    spoil(record)
    found = [finding for finding in record.findings() if finding.id == id]
    assert found, f"not found; there is {[str(f) for f in record.findings()]}"
    assert {finding.severity for finding in found} == {severity}
    for finding in found:
        assert (record.folder / finding.file).exists()
        assert finding.line > 0 or "disk" in id
        assert finding.sentence and finding.found and finding.expected


def test_a_finding_names_the_line_it_is_about(make):
    record = make("colon")
    record.edit(r"int8\+zlib: 15760000", "int8+zlib: 16000001")
    (finding,) = [f for f in record.findings() if f.id == "size"]
    line = record.logs["train_seed42.log"].splitlines()[finding.line - 1]
    assert finding.file == "train_seed42.log" and "16000001" in line
    assert "train_seed42.log:" in str(finding) and "1 bytes over the cap" in finding.sentence


def test_a_calibration_on_text_of_its_own_is_off_the_budget(make):
    record = make("slash")
    record.edit("Hessians in 0.1s", "Hessians in 12.7s")
    record.edit("from calibration data", "from autoregressive self-generated data")
    assert record.findings() == []


def test_a_slow_evaluation_on_lesser_hardware_is_worth_a_look_only(make):
    record = make("colon")
    record.edit(r"eval_time:70000ms", "eval_time:700000ms")
    record.claims["hardware"] = "2x H100"
    record.claims["seed_results"]["42"].pop("eval_time_s")
    assert {(f.id, f.severity) for f in record.findings()} == {("evaluation-time", LOOK)}


def test_an_unlimited_track_has_no_training_budget(make):
    record = make("colon", train_ms=1_500_039.0)
    record.claims["track"] = "non-record-unlimited-compute-16mb"
    assert record.ids() == {"track-differs"}  # filed under track_10min_16mb
    record.claims["track"] = "10min_16mb"
    assert {"training-time", "compliance"} <= record.ids(BROKEN, CONTRADICTION)


def test_the_track_is_read_from_the_folders_where_no_claim_names_it(make):
    record = make("colon", train_ms=700_000.0)
    del record.claims["track"], record.claims["compliance"]
    assert "training-time" in record.ids(BROKEN)


def test_without_a_track_limits_stay_undecided(make, tmp_path):
    record = make("colon", train_ms=700_000.0)
    record.claims["track"] = "my own contest"
    assert {f.id for f in record.findings()} == {"track-unknown"}
    assert audit(record.folder).exit_code == 2
    (report,) = audit(record.folder, load_track("golf-10min-16mb")).reports
    assert "training-time" in {finding.id for finding in report.findings}


def test_another_track_has_its_own_limits_and_no_split(make):
    record = make("plain", train_ms=59_000.0, code=28_000, model=900_000)
    record.folder = record.folder.parents[1] / "pocket" / "2026-04-01_Idea"
    record.claims["track"] = "pocket"
    assert record.findings() == []
    record.edit(r"Total submission size: 928000", "Total submission size: 1000001")
    assert "size" in record.ids(BROKEN)


@pytest.mark.parametrize(
    ("tokens", "is_known"), [(40_540_160 - 1024, True), (40_540_160 - 4096, False)]
)
def test_windows_of_another_length_cut_another_tail(make, tokens, is_known):
    record = make("slash", split="sp8192")
    record.edit("val_tokens: 40540160", f"val_tokens: {tokens}")
    assert ("validation-split" in record.ids()) is not is_known


def test_an_unknown_tokenizer_is_held_to_the_bytes_of_the_text(make):
    def spoiled(tokens: int) -> set[str]:
        record = make("slash")
        for name in record.logs:
            for text in ("sp1024", "fineweb_1024"):
                record.logs[name] = record.logs[name].replace(text, "mine")
            record.logs[name] = record.logs[name].replace("62021632", str(tokens))
        return record.ids()

    assert spoiled(62_021_632 - 5_000) == set()
    assert spoiled(50_000_000) == {"byte-count"}


def test_without_tokens_and_names_a_quotient_must_be_a_published_one(make):
    record = make("plain")
    assert record.findings() == []
    for name, text in record.logs.items():
        record.logs[name] = text.replace("val_loss:1.89", "val_loss:2.89")
    found = [f for f in record.findings() if f.id == "byte-count" and f.file.endswith(".log")]
    assert found and {f.severity for f in found} == {LOOK}


def test_runs_left_out_of_the_result_are_found(make):
    record = make("colon")
    del record.claims["seed_results"]["999"]
    record.claims |= {"seeds": [42, 314], "val_bpb": 1.12379, "val_loss": 1.8975}
    record.claims["val_bpb_std"] = 0.00047
    found = {finding.id: finding for finding in record.findings()}
    assert set(found) == {"best-of-runs", "log-without-entry"}
    assert found["best-of-runs"].severity is BROKEN and "999" in found["best-of-runs"].sentence


def test_runs_that_a_disclosure_admits_are_found(make):
    record = make("colon")
    record.claims["all_runs"] = {"all_val_bpb": {"42": 1.1234567, "7": 1.1262, "8": 1.1268}}
    found = [f for f in record.findings() if f.id == "best-of-runs"]
    assert len(found) == 1 and "best 3 of 5" in found[0].found


def test_a_better_run_that_is_left_out_is_only_worth_a_look(make):
    record = make("colon")
    del record.claims["seed_results"]["42"]
    record.claims |= {"seeds": [314, 999], "val_bpb": 1.12456, "val_loss": 1.8988}
    record.claims["val_bpb_std"] = 0.00061
    assert {(f.id, f.severity) for f in record.findings()} == {("log-without-entry", LOOK)}


def test_a_rerun_of_the_same_seeds_is_no_contradiction(make):
    record = make("slash")
    rerun = {str(run.seed): {"val_bpb": round(run.bpb + 0.0002, 8)} for run in record.runs}
    for run in record.runs:
        run.bpb += 0.0002
        record.logs[f"train_seed{run.seed}_rerun.log"] = run.text("slash").replace(
            "train_loss: 2.", "train_loss: 3."
        )
    record.claims["rerun"] = {"seed_results": rerun, "rerun_mean_bpb": 1.12439}
    assert record.findings() == []
    record.claims["rerun"]["rerun_mean_bpb"] = 1.12419
    assert record.ids() == set()  # it is the mean of the first runs: somewhere in the logs
    record.claims["rerun"]["rerun_mean_bpb"] = 1.1201
    assert record.ids() == {"claim-not-in-logs"}


def test_a_result_of_several_seeds_without_a_table_is_compared_with_the_logs(make):
    record = make("colon")
    del record.claims["seed_results"], record.claims["seeds"]
    assert record.ids() == {"missing-fields"}
    record.claims["val_bpb"] = 1.1234567
    assert record.ids(BROKEN) == {"best-seed"}


def test_claims_without_logs_are_undecided_and_held_to_the_limits(make):
    record = make("colon")
    record.logs.clear()
    assert record.ids() == {"no-log"} and audit(record.folder).exit_code == 2
    record.claims["bytes_total"] = 16_000_001
    assert record.ids(BROKEN) == {"size"}


def test_logs_without_claims_are_checked_on_their_own(make):
    record = make("colon")
    record.claims = {}
    assert record.ids() == {"no-claim"}
    record.edit(r"int8\+zlib: 15760000", "int8+zlib: 16000001")
    assert record.ids(BROKEN) == {"size"}


def test_one_log_is_enough(make):
    path = make("colon").write() / "train_seed42.log"
    assert audit(path, load_track("golf-10min-16mb")).exit_code == 0


def test_weights_and_code_in_the_folder_may_break_the_cap(make):
    record = make("colon", code=700, model=15_999_300)
    record.files = {"train_gpt.py": b"x" * 700, "model.ptz": b"y" * 100}
    assert "size-on-disk" not in record.ids()
    record = make("colon", code=17_000_000, model=100)
    record.files = {"train_gpt.py": b"x" * 17_000_000, "model.ptz": b"y" * 100}
    assert "size-on-disk" in record.ids(BROKEN)


def test_minified_code_that_the_log_does_not_count_may_be_claimed(make):
    record = make("colon")
    for entry in record.claims["seed_results"].values():
        entry["artifact_bytes"] = 15_700_000 + 20_000
    record.claims |= {"bytes_code": 20_000, "bytes_total": 15_720_000}
    record.files["train_gpt.py"] = b"x" * 20_000
    assert record.findings() == []


def test_two_claims_in_one_folder_speak_of_their_own_logs(make):
    record = make("colon")
    record.logs = {name.replace("train", "ternary"): t for name, t in record.logs.items()}
    record.logs["binary_seed5.log"] = record.logs["ternary_seed42.log"].replace("seed:42", "seed:5")
    record.files["submission_binary.json"] = b'{"val_bpb": 1.12345670, "track": "10min_16mb"}'
    record.write()
    (record.folder / "submission.json").rename(record.folder / "submission_ternary.json")
    (report,) = audit(record.folder).reports
    own = {finding.id for finding in report.findings if finding.file == "submission_ternary.json"}
    assert own == set()
