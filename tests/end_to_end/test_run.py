"""Protects the main job: from a text and a recipe to a judged submission, a record and a table."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from speedrun.bpb import score
from speedrun.clock import read_ledger
from speedrun.data.dataset import open_dataset
from speedrun.records.table import BEGIN, END
from speedrun.settings import read_toml
from speedrun.standalone import load_predictor

RUN_FOLDER = {
    *("recipe.toml", "track.toml", "environment.json", "train.log", "metrics.jsonl"),
    *("ledger.jsonl", "checkpoint", "weights.safetensors", "submission", "verdict.json"),
    *("train_gpt.source.txt", "report.html", "samples.jsonl"),
}
SUBMISSION = {
    *("submission.json", "README.md", "model.srz", "train_gpt.py", "manifest.json"),
    *("logs/train.log", "logs/ledger.jsonl", "logs/train_gpt.source.txt"),
}


@pytest.fixture(name="folders")
def folders_fixture(runs):
    return sorted(path for path in runs.iterdir() if path.is_dir())


def test_a_run_leaves_every_file_that_the_design_lists(folders):
    assert len(folders) == 3
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == RUN_FOLDER
        submission = folder / "submission"
        found = {p.relative_to(submission).as_posix() for p in submission.rglob("*") if p.is_file()}
        assert found == SUBMISSION


def test_a_run_passes_and_has_its_row_in_the_table(runs, folders):
    rows = [json.loads(line) for line in (runs / "runs.jsonl").read_text().splitlines()]
    assert [row["folder"] for row in rows] == [folder.name for folder in folders]
    assert [row["seed"] for row in rows] == [42, 43, 44]
    for row in rows:
        assert (row["verdict"], row["track"], row["recipe"]) == ("PASS", "tiny", "tiny/tiny")
        assert 0 < row["train_seconds"] <= 1.0 and row["num_steps"] > 0


def test_the_budget_holds_in_the_ledger(folders):
    for folder in folders:
        phases = read_ledger(folder / "ledger.jsonl")
        assert {"set-up", "warm-up", "train", "pack", "evaluate"} <= {each.name for each in phases}
        assert 0 < sum(each.seconds for each in phases if each.on_budget) <= 1.0


def test_json_stands_alone_on_stdout(contest, runs):
    lines = [json.loads(line) for line in (contest.folder / "stdout").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [42, 43, 44]
    assert "step:1/" in (contest.folder / "stderr").read_text()


def test_the_trainer_and_the_judge_measure_the_same(folders, contest):
    dataset = open_dataset(contest.data)
    for folder in folders:
        claim = json.loads((folder / "submission" / "submission.json").read_text())
        measured = json.loads((folder / "verdict.json").read_text())["measurement"]
        assert abs(claim["val_bpb"] - measured["bpb"]) < 1e-6
        run, predictor = load_predictor((folder / "submission" / "model.srz").read_bytes())
        again = score(
            predictor,
            dataset.val_tokens(),
            num_bytes=dataset.val_raw_bytes,
            **dataclasses.asdict(run.evaluation),
        )
        assert abs(again.bpb - measured["bpb"]) < 1e-6


def test_the_recipe_is_resolved_and_names_its_seed(folders):
    recipe = read_toml(folders[1] / "recipe.toml")
    assert recipe["seed"] == 43 and recipe["train"]["budget_s"] == 1.0
    assert recipe["optim"]["newton_schulz_steps"] == 5  # nowhere in the file that was given


def test_verify_passes_again_and_writes_its_verdict(call, contest, folders, tmp_path):
    out = tmp_path / "verdict.json"
    found = call("verify", folders[0] / "submission", "--track", contest.track, "--out", out)
    assert found.code == 0
    assert "PASS at level score" in found.out and "…" not in found.out
    assert max(map(len, found.out.splitlines())) <= 80
    first, again = (
        json.loads((folders[0] / "verdict.json").read_text()),
        json.loads(out.read_text()),
    )
    assert again["measurement"]["bpb"] == pytest.approx(first["measurement"]["bpb"], abs=1e-9)


def test_a_submission_answers_where_speedrun_cannot_be_imported(folders):
    starter = """
import runpy, sys
from importlib.machinery import PathFinder
class OnlyBundle:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "speedrun":
            found = PathFinder.find_spec(name, path or ["train_gpt.py"])
            if found is None:
                raise ImportError(f"{name} is not installed here")
            return found
sys.meta_path.insert(0, OnlyBundle())
sys.argv = ["train_gpt.py", "predict", "model.srz"]
runpy.run_path("train_gpt.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", starter],
        cwd=folders[0] / "submission",
        input=b"",
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"SRP1") and b'"kind": "fixed"' in done.stdout


def test_pack_again_with_fewer_bits_is_smaller_and_verifies(call, contest, folders, tmp_path):
    out = tmp_path / "fewer"
    found = call("pack", folders[0], "--out", out, "--set", "quant.matrix_bits=4", "--json")
    facts = json.loads(found.out)
    before = json.loads((folders[0] / "submission" / "submission.json").read_text())
    assert facts["bytes_total"] < before["bytes_total"]
    assert call("verify", out, "--track", contest.track, "--json").code == 0


def test_three_seeds_are_handed_in_filed_and_shown(call, contest, folders, tmp_path):
    root, readme = tmp_path / "records", tmp_path / "README.md"
    readme.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    places = ("--root", root, "--readme", readme)
    words = ("--track", contest.track, "--author", "Ada", "--blurb", "A start.")
    handed_in = call("submit", *folders, "--out", tmp_path / "mine", *words)
    assert handed_in.code == 0, handed_in.err
    words = ("--track", contest.track, "--slug", "first-try", *places)
    added = call("records", "add", tmp_path / "mine", *words, "--json")
    assert added.code == 0, added.err
    filed = json.loads(added.out)
    assert [seed["seed"] for seed in filed["seeds"]] == [42, 43, 44]
    assert (filed["author"], filed["summary"], filed["status"]) == ("Ada", "A start.", "record")
    (record,) = (root / "tiny").iterdir()
    assert {path.name for path in record.iterdir()} == {
        *("README.md", "record.json", "verdict.json", "recipe.toml"),
        *("seed42.log", "seed43.log", "seed44.log"),
        *("seed42.ledger.jsonl", "seed43.ledger.jsonl", "seed44.ledger.jsonl"),
    }
    text = readme.read_text()
    assert text.startswith("# Mine\n") and text.endswith("The end.\n") and "old" not in text
    assert f"[first-try]({root.as_posix()}/tiny/{record.name})" in text

    (listed,) = json.loads(call("records", "list", "--root", root, "--json").out)
    assert listed["slug"] == "first-try"
    assert "first-try" in call("records", "list", "--root", root).out
    rendered = call("records", "render", *places, "--json")
    assert json.loads(rendered.out)["tracks"] == ["tiny"] and readme.read_text() == text
    compared = call("records", "compare", record, record, "--track", contest.track, "--json")
    found = json.loads(compared.out)
    assert found["gain"] == 0.0 and found["interval"][0] < 0 < found["interval"][1]
    assert found["seeds_needed"]["if_mean_stays"] is None
    told = call("records", "compare", "first-try", record, "--track", contest.track, "--root", root)
    assert "no number of seeds shows this gain" in told.out
    names = ("--csv", tmp_path / "all.csv", "--json-file", tmp_path / "all.json")
    call("records", "render", *places, *names)
    rows = json.loads((tmp_path / "all.json").read_text())
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert len(lines) == len(rows) + 1 and rows[0]["slug"] == "first-try"
    assert {row["status"] for row in rows} == {"record", "published"}

    gone = call("records", "withdraw", record, "--reason", "the clock stood still", *places)
    assert gone.code == 0
    assert "withdrawn" in readme.read_text() and "the clock stood still" in readme.read_text()


def test_the_runs_table_fits_a_terminal(call, runs):
    found = call("records", "runs", "--out", runs)
    assert found.out.count("tiny/tiny") == 3 and found.out.count("PASS") == 3
    assert "…" not in found.out and max(map(len, found.out.splitlines())) <= 80
    assert len(json.loads(call("records", "runs", "--out", runs, "--json").out)) == 3
