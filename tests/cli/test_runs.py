"""Protects the commands that look at runs: `runs`, `report`, `watch`, and `records site`."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pytest


@pytest.fixture
def three(runs, tmp_path):
    """A copy of three finished runs and their table."""
    return shutil.copytree(runs, tmp_path / "three")


def test_runs_filters_compares_and_exports(call, three):
    table = call("runs", "--out", three).out
    assert table.count("PASS") == 3 and "tiny/tiny" in table
    every = json.loads(call("runs", "--out", three, "--json").out)
    best = json.loads(call("runs", "--out", three, "--best", 1, "--json").out)
    assert best == [min(every, key=lambda row: row["val_bpb"])]
    rows = list(csv.DictReader(io.StringIO(call("runs", "--out", three, "--format", "csv").out)))
    assert [row["seed"] for row in rows] == ["42", "43", "44"]
    word = every[1]["folder"]
    assert [
        row["folder"] for row in json.loads(call("runs", word, "--out", three, "--json").out)
    ] == [word]
    assert "no runs fit" in call("runs", "--track", "golf", "--out", three).out
    pair = ("--compare", "tiny/tiny", every[0]["folder"])
    said = call("runs", "--out", three, *pair)
    assert said.code == 0 and re.search(r"gain [+-]\d\.\d{4} bpb, 95 % interval", said.out)
    told = json.loads(call("runs", "--out", three, *pair, "--json").out)
    assert told["settings"] == {} and told["first"]["num_seeds"] == 3
    assert "no scored run" in call("runs", "--out", three, "--compare", "x", "y").error()


def test_every_run_leaves_a_report_and_reports_can_be_laid_over_one_another(call, three, tmp_path):
    folders = sorted(path for path in three.iterdir() if path.is_dir())
    page = (folders[0] / "report.html").read_text()
    for said in ("Loss by time", "What rounding costs", "How it goes on", "PASS", "Packed tensors"):
        assert said in page, said
    assert len((folders[0] / "samples.jsonl").read_text().splitlines()) == 3
    out = tmp_path / "both.html"
    found = call("report", *folders, "--out", out, "--json")
    assert found.code == 0 and json.loads(found.out) == {"report": str(out)}
    assert "3 runs" in out.read_text()
    (folders[0] / "samples.jsonl").unlink()
    assert call("report", folders[0], "--samples", 1).code == 0
    again = (folders[0] / "samples.jsonl").read_text().splitlines()
    assert len(again) == 1 and json.loads(again[0])["continuation"]
    assert "no run folder" in call("report", tmp_path).error()


def test_watch_looks_at_the_newest_run(call, three, tmp_path):
    text = call("watch", "--out", three, "--once").out
    assert "PASS" in text and "counted" in text and "packed" in text
    told = json.loads(call("watch", "--out", three, "--json").out)
    assert told["state"] == "finished" and told["bytes"] < told["cap_bytes"] == 100_000
    assert call("watch", "--out", three).code == 0  # a finished run has nothing to follow
    assert "no run to watch" in call("watch", "--out", tmp_path / "none").error()


def test_watch_forecasts_bytes_until_they_are_counted(call, three):
    folder = min(path for path in three.iterdir() if path.is_dir())
    counted = json.loads(call("watch", folder, "--json").out)["bytes"]
    shutil.rmtree(folder / "submission")
    (folder / "verdict.json").unlink()
    told = json.loads(call("watch", folder, "--json").out)
    assert told["bytes_source"] == "forecast of the trained weights" and told["state"] == "packing"
    assert told["bytes"] == pytest.approx(counted, rel=0.05)
    (folder / "weights.safetensors").unlink()
    with (folder / "train.log").open("a") as log:
        log.write("step:9/99 forecast_model_bytes:12345 bits_per_weight:5.000\n")
    code_bytes = told["bytes"] - counted
    told = json.loads(call("watch", folder, "--json").out)
    assert told["bytes_source"] == "forecast at the last look" and told["bytes"] > 12_345
    (folder / "train.log").write_text("")
    told = json.loads(call("watch", folder, "--json").out)
    assert told["bytes_source"] == "as planned" and abs(code_bytes) < counted


def test_records_site_writes_pages(call, tmp_path):
    out = tmp_path / "site"
    found = call("records", "site", "--root", tmp_path / "none", "--out", out, "--json")
    told = json.loads(found.out)
    assert found.code == 0 and told["index"] == str(out / "index.html")
    assert all((tmp_path / name).is_file() for name in told["files"])
    words = ("records", "site", "--root", tmp_path / "none", "--no-published", "--out", out)
    assert "no records of any track" in call(*words).error()
