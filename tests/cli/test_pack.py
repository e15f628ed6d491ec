"""Protects `speedrun pack`: what it explains, draws and sweeps, and what calibrates it."""

from __future__ import annotations

import json

import pytest

from speedrun.clock import read_ledger

SETTINGS = ("--set", "quant.method='fit'", "--set", "quant.codec='ans'")
CAP = "34kB"


@pytest.fixture(scope="module")
def calibrated(contest, tmp_path_factory):
    """A run whose recipe keeps time for calibration and fills its cap."""
    out = tmp_path_factory.mktemp("calibrated")
    track = out / "small.toml"
    text = contest.track.read_text().replace("cap_bytes = 100_000", "cap_bytes = 56_000")
    track.write_text(text)
    done = contest.run(
        *("run", "--track", track, "--out", out / "runs", "--set", "quant.calibration_s=0.3"),
        *SETTINGS,
    )
    assert done.code == 0, done.err
    (folder,) = (path for path in (out / "runs").iterdir() if path.is_dir())
    return folder


def test_a_calibrated_run_keeps_to_its_budget_and_its_cap(calibrated):
    phases = read_ledger(calibrated / "ledger.jsonl")
    assert 0 < sum(each.seconds for each in phases if each.on_budget) <= 1.0
    booked = [each for each in phases if each.name == "calibrate" and each.on_budget]
    assert booked and booked[-1].details["batches"] > 0
    facts = json.loads((calibrated / "submission" / "submission.json").read_text())
    assert facts["bytes_total"] <= 56_000
    assert json.loads((calibrated / "verdict.json").read_text())["status"] == "PASS"


def test_a_calibration_of_other_text_is_refused(call, contest, calibrated, monkeypatch):
    monkeypatch.setattr("speedrun.train.calibrate.digest_of", lambda *numbers: "0" * 64)
    found = call("pack", calibrated)
    assert found.code == 2 and "that text has another SHA-256" in found.error()


def test_gptq_without_a_calibration_says_where_to_get_one(call, finished):
    found = call("pack", finished, "--set", "quant.method='gptq'")
    assert found.code == 2 and "generated" in found.error() and "calibration_s" in found.err


def test_a_report_explains_every_byte_and_draws_what_each_tensor_costs(call, calibrated):
    found = call("pack", calibrated, "--explain", "--report", "--tokens", "200")
    assert found.code == 0, found.err
    assert "speedrun.pack.ans" in found.out and "model.srz" in found.out
    assert "train_gpt.source.txt gives these very bytes" in found.out
    assert "tok_emb.weight" in found.out
    page = (calibrated / "pack-report.html").read_text()
    assert page.count("<rect") >= 2 * 12 and "tok_emb.weight" in page and "bpb alone" in page


def test_a_sweep_scores_each_size_and_says_which_is_too_small(call, calibrated):
    found = call("pack", calibrated, "--sweep", "36kB,38kB,44kB", "--tokens", "200")
    assert found.code == 0, found.err
    points = json.loads((calibrated / "pack-sweep.json").read_text())
    sizes = [point["total_bytes"] for point in points]
    assert sizes == sorted(sizes) and all(p["total_bytes"] <= p["cap_bytes"] for p in points)
    assert len(points) < 3 and "even at 1 bit each" in found.out
