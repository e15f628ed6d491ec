"""Protects the workflow for pull requests: what it judges, with whose judge, and what it may do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import speedrun

FOLDER = Path(speedrun.__file__).parents[1] / ".github"
JUDGE = FOLDER / "workflows" / "judge.yml"


@pytest.fixture(name="steps")
def steps_fixture() -> list[dict[str, Any]]:
    return list(yaml.safe_load(JUDGE.read_text())["jobs"]["judge"]["steps"])


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def merge(folder: Path) -> Path:
    """A repository with two submissions, and the merge of a pull request that changes it."""
    git(folder, "init", "--initial-branch=main")
    for name in ("old", "gone", "template"):
        put(folder, f"submissions/{name}/submission.json", "{}")
    put(folder, "submissions/README.md", "what was handed in")
    git(folder, "add", "--all")
    git(folder, "commit", "--message=base")
    git(folder, "checkout", "-b", "asked")
    put(folder, "submissions/old/README.md", "changed")
    put(folder, "submissions/new/submission.json", '{\n  "python_version": "3.12.4",\n}')
    put(folder, "submissions/new/seed42/model.srz", "x")
    put(folder, "submissions/template/README.md", "changed")
    put(folder, "submissions/README.md", "changed")
    put(folder, "submissions/$(reboot) ; x/submission.json", "{}")
    put(folder, "speedrun/verify/judge.py", "a judge that lets everything pass")
    shutil.rmtree(folder / "submissions" / "gone")
    git(folder, "add", "--all")
    git(folder, "commit", "--message=hand in")
    git(folder, "checkout", "main")
    git(folder, "merge", "--no-ff", "--message=merge", "asked")
    return folder


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def run(script: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", FOLDER / script, *words], input=given, capture_output=True, text=True, check=True
    )


def test_what_is_judged_is_what_the_pull_request_adds_or_changes(tmp_path: Path) -> None:
    found = run("changed-submissions.sh", str(merge(tmp_path)))
    assert found.stdout.split() == ["new", "old"]
    assert "not judged" in found.stderr


def test_python_is_the_one_that_the_submission_names(tmp_path: Path) -> None:
    merge(tmp_path)
    assert run("python-of.sh", str(tmp_path), given="old\nnew\n").stdout == "3.12.4\n"
    assert run("python-of.sh", str(tmp_path), given="old\n").stdout == "3.11\n"
    put(tmp_path, "submissions/old/submission.json", '{"python_version": "3.11; reboot"}')
    assert run("python-of.sh", str(tmp_path), given="old\n").stdout == "3.11\n"


def test_the_judge_comes_from_the_branch_that_is_asked(
    steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    (take,) = [step["run"] for step in steps if "worktree" in step.get("run", "")]
    (tmp_path / "handed-in").mkdir()
    merge(tmp_path / "handed-in")
    subprocess.run(["bash", "-ec", take], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "judge" / "submissions" / "gone").is_dir()
    assert not (tmp_path / "judge" / "speedrun").exists()
    installed = [step["run"] for step in steps if "pip install" in step.get("run", "")]
    assert len(installed) == 1 and installed[0].strip().endswith("./judge")
    # Nothing of what is handed in is a program of the workflow's.
    assert not any("handed-in/.github" in step.get("run", "") for step in steps)


def test_the_workflow_may_only_read_and_takes_no_words_from_strangers(
    steps: list[dict[str, Any]],
) -> None:
    workflow = yaml.safe_load(JUDGE.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True].keys() == {"pull_request"}  # `on` is a yes in YAML
    for step in steps:
        assert "${{" not in step.get("run", "")
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    (judge,) = [step["run"] for step in steps if "speedrun judge" in step.get("run", "")]
    assert "--level prove" in judge and "--allow-unsandboxed" not in judge
