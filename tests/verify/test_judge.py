"""Protects the judge: honest submissions pass; each broken rule is named, alone, in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from speedrun.clock import Phase
from speedrun.config import EvalConfig
from speedrun.errors import DataError, RecordError, SubmissionError
from speedrun.verify.judge import verify_submission
from speedrun.verify.rules import REQUIRED
from speedrun.verify.verdict import Status, Verdict, print_verdict, read_verdict, write_verdict


def judge(bench: Any, folder: Path, **options: Any) -> Verdict:
    return verify_submission(folder, options.pop("track", bench.track), bench.text, **options)


def outcome(verdict: Verdict, but: str = "") -> dict[str, str]:
    """Rules that did not pass, one of them left out."""
    for result in verdict.results:
        assert "\n" not in result.evidence + result.fix
        if result.status is not Status.PASS:
            assert result.evidence or (result.measured and result.limit)
    wrong = {r.id: str(r.status) for r in verdict.results if r.status is not Status.PASS}
    wrong.pop(but, None)
    return wrong


def evidence(verdict: Verdict, rule: str) -> str:
    return next(result.evidence for result in verdict.results if result.id == rule)


def test_an_honest_submission_passes_with_the_score_of_the_same_model_in_process(
    bench: Any, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    verdict = judge(bench, bench.submit(), progress=lambda *args: seen.append(args))
    assert outcome(verdict) == {}
    assert verdict.exit_code == 0
    measured = verdict.measurement
    assert measured is not None
    assert measured.bpb == pytest.approx(bench.true_bpb, rel=1e-12)
    # 4,000 of 5,000 bytes survive the tokenizer. A true claim needs no other score to explain it.
    assert measured.chunked_bpb is None
    assert measured.token_bpb == pytest.approx(bench.true_bpb * 5 / 4)
    assert (measured.num_tokens, measured.kind) == (2_000, "fixed")
    assert {name for name, *_ in seen} == {"sliding windows"}
    assert seen[-1] == ("sliding windows", 2_000, 2_000)
    write_verdict(verdict, tmp_path / "verdict.json")
    assert read_verdict(tmp_path / "verdict.json") == verdict


def test_another_claim_is_held_against_chunks(bench: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = bench.submit(claim=bench.true_bpb + 0.1)
    verdict = judge(bench, folder, progress=lambda *args: seen.append(args))
    assert outcome(verdict) == {"metric": "FAIL"}
    assert verdict.measurement is not None
    # The predictor is a bigram, so chunks lose nothing.
    assert verdict.measurement.chunked_bpb == pytest.approx(bench.true_bpb)
    assert seen[-1] == ("chunks", 2_000, 2_000)


def test_the_static_level_runs_nothing(bench: Any) -> None:
    verdict = judge(bench, bench.submit(code=b"raise SystemExit(1)"), level="static")
    assert (verdict.exit_code, verdict.isolation) == (0, "nothing was run")


@pytest.mark.parametrize("shift", [-0.001, 0.001])
def test_a_claim_that_is_not_what_was_measured_fails(bench: Any, shift: float) -> None:
    verdict = judge(bench, bench.submit(claim=bench.true_bpb + shift))
    assert (outcome(verdict), verdict.exit_code) == ({"metric": "FAIL"}, 1)
    assert f"{-shift:+.6f}" in evidence(verdict, "metric")


def test_a_damaged_model_file_fails_and_is_not_run(bench: Any) -> None:
    folder = bench.submit()
    data = bytearray((folder / "model.srz").read_bytes())
    data[-40] ^= 1
    (folder / "model.srz").write_bytes(bytes(data))
    verdict = judge(bench, folder)
    found = outcome(verdict)
    assert (found["hashes"], found["container"], found["metric"]) == ("FAIL", "FAIL", "UNDECIDED")
    assert "model.srz" in evidence(verdict, "hashes")
    assert verdict.isolation == "nothing was run"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a pickle inside a zip", b"\x80\x04K\x01."])
def test_a_foreign_model_file_fails_even_when_the_manifest_agrees(bench: Any, data: bytes) -> None:
    folder = bench.submit()
    (folder / "model.srz").write_bytes(data)
    bench.relist(folder)
    found = outcome(judge(bench, folder))
    assert (found["container"], found.get("hashes")) == ("FAIL", None)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_file_is_named(bench: Any, name: str) -> None:
    folder = bench.submit()
    (folder / name).unlink()
    verdict = judge(bench, folder, level="static")
    assert verdict.exit_code == 1
    assert f"{name} (missing)" in evidence(verdict, "files")


def test_hidden_linked_and_special_files_fail_and_nothing_is_read(bench: Any) -> None:
    for number in range(3):
        folder = bench.submit()
        wrong = folder / "logs" / [".hidden", "link", "pipe"][number]
        if number == 0:
            wrong.write_text("x")
            bench.relist(folder)
        elif number == 1:
            wrong.symlink_to("/dev/zero")
        else:
            os.mkfifo(wrong)
        verdict = judge(bench, folder)
        found = outcome(verdict)
        assert found.pop("files") == "FAIL"
        assert set(found.values()) == {"UNDECIDED"}
        assert f"logs/{wrong.name} (" in evidence(verdict, "files")
        folder.rename(folder.with_name(f"used{number}"))


def test_an_unlisted_file_fails(bench: Any) -> None:
    folder = bench.submit()
    (folder / "cache.bin").write_bytes(b"capacity")
    verdict = judge(bench, folder, level="static")
    assert outcome(verdict) == {"files": "FAIL"}
    assert "cache.bin (not in manifest.json)" in evidence(verdict, "files")


def test_the_size_limit_holds_to_the_byte(bench: Any) -> None:
    folder = bench.submit()
    total = sum((folder / name).stat().st_size for name in ("train_gpt.py", "model.srz"))
    for cap, found in ((total, {}), (total - 1, {"size": "FAIL"})):
        track = dataclasses.replace(bench.track, cap_bytes=cap)
        assert outcome(judge(bench, folder, track=track, level="static")) == found


def test_a_file_far_over_the_limit_is_not_opened(bench: Any) -> None:
    folder = bench.submit()
    track = dataclasses.replace(bench.track, cap_bytes=100)
    found = outcome(judge(bench, folder, track=track))
    assert (found["size"], found["container"], found["metric"]) == ("FAIL", *["UNDECIDED"] * 2)


def test_an_edited_ledger_fails(bench: Any) -> None:
    folder = bench.submit(
        phases=(
            Phase(name="train", start_s=0.0, stop_s=70.0, on_budget=True),
            Phase(name="pack", start_s=70.0, stop_s=71.0, on_budget=False),
        )
    )
    verdict = judge(bench, folder, level="static")
    assert outcome(verdict, but="provenance") == {"training-time": "FAIL"}
    path = folder / "logs" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"stop_s": 70.0', '"stop_s": 59.0', 1))
    bench.relist(folder)
    verdict = judge(bench, folder, level="static")
    assert outcome(verdict, but="provenance") == {"training-time": "FAIL"}
    assert "chain is broken" in evidence(verdict, "training-time")


@pytest.mark.parametrize("name", ["train", "calibrate"])
def test_training_counts_whatever_the_ledger_marks_it_as(bench: Any, name: str) -> None:
    folder = bench.submit(
        phases=(
            Phase(name="train", start_s=0.0, stop_s=40.0, on_budget=True),
            Phase(name=name, start_s=40.0, stop_s=60.1, on_budget=False),
        )
    )
    assert outcome(judge(bench, folder, level="static"), but="provenance") == {
        "training-time": "FAIL"
    }


def test_a_ledger_without_training_fails(bench: Any) -> None:
    folder = bench.submit(phases=(Phase(name="pack", start_s=0, stop_s=1, on_budget=False),))
    assert outcome(judge(bench, folder, level="static"), but="provenance") == {
        "training-time": "FAIL"
    }


def test_claims_for_another_track_or_size_fail(bench: Any) -> None:
    folder = bench.submit()
    claims = json.loads((folder / "submission.json").read_text())
    claims |= {"track": "golf", "bytes_total": 1, "val_bpb": None}
    (folder / "submission.json").write_text(json.dumps(claims))
    bench.relist(folder)
    verdict = judge(bench, folder, level="static")
    assert outcome(verdict) == {"claims": "FAIL"}
    for word in ("val_bpb", "'golf'", "'test'", "bytes_total"):
        assert word in evidence(verdict, "claims")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, '{"val_bpb": NaN}', "\xff", f'{{"val_bpb": {"9" * 400}}}'],
)
def test_unreadable_claims_fail_without_a_crash(bench: Any, text: str) -> None:
    folder = bench.submit()
    (folder / "submission.json").write_text(text, encoding="latin-1")
    bench.relist(folder)
    found = outcome(judge(bench, folder, level="static"))
    assert found == {"claims": "FAIL", "provenance": "UNDECIDED"}


def test_settings_that_would_exhaust_the_judge_fail(bench: Any) -> None:
    run = dataclasses.replace(
        bench.submit.__func__.__kwdefaults__["run"],
        evaluation=EvalConfig(context=1 << 20, stride=1, batch_windows=1 << 20),
    )
    verdict = judge(bench, bench.submit(run=run))
    assert outcome(verdict)["container"] == "FAIL"
    assert "1,048,576 windows" in evidence(verdict, "container")


def test_another_text_or_a_damaged_one_leaves_the_score_undecided(bench: Any) -> None:
    verdict = judge(bench, bench.submit(data_fingerprint="e" * 64))
    assert verdict.exit_code == 2
    assert outcome(verdict)["data"] == "UNDECIDED"
    bench.text.fingerprint = "e" * 64

    def damaged() -> None:
        raise DataError("val shard: sha256 differs; fetch it again")

    bench.text.verify_validation = damaged
    verdict = judge(bench, bench.folder / "submission")
    assert "sha256 differs" in evidence(verdict, "data")


PREDICT = """
class Submitted:
    vocab_size, kind = 8, "fixed"
    def predict(self, tokens, scored_from):
        n = int((tokens.shape[1] - scored_from).sum())
        {0}
    def observe(self, tokens):
        pass
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return np.full((n, 8), np.nan)", "distribution: nan"),
        ("return np.full((n, 8), np.inf)", "distribution: inf"),
        ("return np.zeros((n, 9))", "coverage: [32, 9]"),
        ("return np.zeros((n + 1, 8))", "coverage: [32, 8]"),
        ("return np.zeros(n * 8)", "coverage: expected [32, 8]"),
        ("os.write(connection[1].fileno(), b'hello\\x1b[2J')", "'hello"),
        ("os.write(connection[1].fileno(), frame({}) * 2)", "coverage: [32, 8]"),
        ("os.write(connection[1].fileno(), FRAME.pack(MAGIC, 4, 0) + b'[[[[')", "'[[[['"),
        ("os.write(connection[1].fileno(), FRAME.pack(MAGIC, 2**31, 9))", "2,147,483,648"),
        (
            "os.write(connection[1].fileno(), frame({'shape': [n, 8]})); os.read(0, 1)",
            "coverage: wrote 0 bytes of logits",
        ),
    ],
)
def test_an_answer_that_is_no_prediction_fails(bench: Any, body: str, said: str) -> None:
    verdict = judge(bench, bench.submit_predictor(PREDICT.format(body)))
    found = outcome(verdict)
    rule, _, said = said.rpartition(": ")
    assert found.pop(rule or "predictor") == "FAIL"
    assert set(found.values()) == {"UNDECIDED"}
    assert said in evidence(verdict, rule or "predictor")
    assert "\x1b" not in evidence(verdict, rule or "predictor")


@pytest.mark.parametrize(
    ("predictor", "start", "said"),
    [
        ("", "raise SystemExit('no such codec here')", "no such codec here"),
        (PREDICT.format("raise ValueError('lost it')"), "", "ValueError: lost it"),
        (PREDICT.format("os.kill(os.getpid(), 9)"), "", "before it answered"),
    ],
)
def test_a_predictor_that_dies_is_undecided_with_its_last_words(
    bench: Any, predictor: str, start: str, said: str
) -> None:
    verdict = judge(bench, bench.submit_predictor(predictor, start))
    assert (verdict.exit_code, outcome(verdict)["predictor"]) == (2, "UNDECIDED")
    assert said in evidence(verdict, "predictor")


@pytest.mark.parametrize("start", ["import time; time.sleep(60)", "while True: print('x' * 9999)"])
def test_a_predictor_that_hangs_or_babbles_is_ended_in_time(bench: Any, start: str) -> None:
    track = dataclasses.replace(bench.track, eval_seconds=1.0)
    verdict = judge(bench, bench.submit_predictor("", start), track=track)
    assert verdict.exit_code == 1


def test_a_slow_machine_proves_nothing_about_a_contest_on_gpus(bench: Any) -> None:
    import torch

    track = dataclasses.replace(
        bench.track, eval_seconds=0.01, num_gpus=torch.cuda.device_count() + 1
    )
    verdict = judge(bench, bench.submit(), track=track)
    assert outcome(verdict) == {"evaluation-time": "UNDECIDED"}


def test_an_adaptive_predictor_learns_from_what_it_observes(bench: Any) -> None:
    adaptive = """
class Submitted:
    vocab_size, kind = 8, "adaptive"
    counts, last = np.ones((8, 8)), None
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return np.log(self.counts[tokens[asked]])
    def observe(self, tokens):
        seen = tokens if self.last is None else np.append(self.last, tokens)
        np.add.at(self.counts, (seen[:-1], seen[1:]), 1)
        self.last = tokens[-1]
"""
    verdict = judge(bench, bench.submit_predictor(adaptive))
    measured = verdict.measurement
    assert measured is not None
    assert (measured.kind, measured.chunked_bpb) == ("adaptive", None)
    # Worse than counts of the whole text, better than the 1.2 of never learning.
    assert bench.true_bpb < measured.bpb < 1.0


def test_a_folder_that_is_not_there_is_an_error(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="nowhere"):
        judge(bench, tmp_path / "nowhere")


def test_names_in_a_submission_cannot_style_the_table(bench: Any) -> None:
    folder = bench.submit()
    (folder / "[bold red]x[").write_text("")
    out = io.StringIO()
    print_verdict(judge(bench, folder, level="static"), Console(file=out, width=100))
    assert "FAIL files: [bold red]x[ (not in manifest.json)" in out.getvalue()


def test_a_verdict_whose_status_was_edited_is_refused(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_verdict(judge(bench, bench.submit(claim=0.5), level="static"), path)
    path.write_text(path.read_text().replace('"status": "PASS"', '"status": "FAIL"', 1))
    with pytest.raises(RecordError, match="verify again"):
        read_verdict(path)
