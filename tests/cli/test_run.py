"""Protects the choices of `speedrun run`: which track, which seed, how long."""

from __future__ import annotations

import json

import pytest
import torch

from speedrun.data import corpus
from speedrun.tracks.load import load_track


def _plan(call, *words):
    found = call("run", "--dry-run", "--json", *words)
    assert found.code == 0, found.err
    return json.loads(found.out), found.err


def test_a_laptop_runs_pocket_and_hears_why(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    plan, said = _plan(call)
    assert plan["track"] == "pocket" and plan["recipe"] == "pocket/default"
    assert "golf-10min-16mb needs 8 GPUs, 0 visible" in said


def test_choosing_a_track_builds_no_corpus(call, monkeypatch):
    monkeypatch.setattr(corpus, "_open_stdlib", lambda *_: pytest.fail("a corpus was built"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _plan(call)[0]["track"] == "pocket"


def test_eight_gpus_without_the_data_run_pocket_and_hear_why(call, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("SPEEDRUN_DATA", str(tmp_path))
    found = call("run", "--dry-run")
    assert "track: pocket" in found.out and "golf-10min-16mb needs its corpus" in found.out


def test_a_budget_is_the_options_then_the_recipes_then_the_tracks(call, contest):
    words = ("--track", contest.track)
    assert _plan(call, *words)[0]["budget_seconds"] == load_track(str(contest.track)).train_seconds
    assert _plan(call, *words, "--set", "train.budget_s=0.5")[0]["budget_seconds"] == 0.5
    plan, said = _plan(call, *words, "--budget", "1min", "--set", "train.budget_s=0.5")
    assert plan["budget_seconds"] == 60.0 and "more than the 1 s of track tiny" in said


def test_a_seed_is_the_options_then_the_recipes(call, contest):
    words = ("--track", contest.track)
    assert _plan(call, *words)[0]["seed"] == 42
    assert _plan(call, *words, "--set", "seed=7")[0]["seed"] == 7
    assert _plan(call, *words, "--set", "seed=7", "--seed", 8)[0]["seed"] == 8


def test_a_finished_run_is_not_resumed(call, finished):
    found = call("run", "--resume", finished)
    assert found.code == 2 and "is finished" in found.error()


def test_the_plan_foresees_the_size(call, contest, finished):
    plan, _ = _plan(call, "--track", contest.track)
    claims = json.loads((finished / "submission" / "submission.json").read_text())
    assert plan["estimated_artifact_bytes"] == pytest.approx(claims["bytes_total"], rel=0.15)
    assert plan["parameters"] == claims["model_params"]
