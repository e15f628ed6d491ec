"""Protects the way from finished runs to a folder that is handed in, judged and filed."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import speedrun
from speedrun.config import RunConfig
from speedrun.pack.submission import read_manifest
from speedrun.recipes.explain import explain_settings
from speedrun.settings import flatten
from speedrun.verify.forensics.audit import audit
from speedrun.verify.forensics.findings import Severity
from speedrun.verify.whole import whole

PACKAGE = Path(speedrun.__file__).parent


@pytest.fixture(name="folders")
def folders_fixture(runs: Path) -> list[Path]:
    return sorted(path for path in runs.iterdir() if path.is_dir())


@pytest.fixture(scope="session", name="written")
def written_fixture(contest, runs: Path) -> Path:
    """A submission of three seeds, made once."""
    out = contest.folder / "handed-in"
    folders = sorted(path for path in runs.iterdir() if path.is_dir())
    words = ("--track", contest.track, "--author", "Ada", "--github-id", "ada", "--blurb", "New.")
    with contest.alone():
        if not out.exists():
            done = contest.run("submit", *folders, "--out", out, *words)
            assert done.code == 0, done.err
            assert "judging" not in done.err  # the runs' own verdicts are taken
    return out


@pytest.fixture(name="copied")
def copied_fixture(written: Path, tmp_path: Path) -> Path:
    """The same, to do harm to."""
    return Path(shutil.copytree(written, tmp_path / "copied"))


def test_the_folder_is_complete_and_sums_up_its_seeds(written, folders):
    claims = json.loads((written / "submission.json").read_text())
    parts = [json.loads((f / "submission" / "submission.json").read_text()) for f in folders]
    scores = [part["val_bpb"] for part in parts]
    assert claims["val_bpb"] == pytest.approx(statistics.fmean(scores), abs=1e-12)
    assert claims["val_bpb_std"] == pytest.approx(statistics.stdev(scores), abs=1e-12)
    assert claims["seeds"] == [42, 43, 44] and claims["author"] == "Ada"
    assert claims["bytes_total"] == max(part["bytes_total"] for part in parts)
    assert [row["val_bpb"] for row in claims["seed_results"].values()] == scores
    listed = {name for name in read_manifest(written) if "/" not in name}
    assert listed == {"README.md", "submission.json", "verdict.json", "recipe.toml"}
    assert whole(written).status == "PASS"


def test_the_schema_is_written_down_key_by_key(written):
    page = (PACKAGE / "pack" / "SUBMISSION.md").read_text()
    claims = json.loads((written / "submission.json").read_text())
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    described = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert described == claims.keys()
    (inner,) = re.findall(r"Each entry of `seed_results` has (.*?)\.\n", page, re.S)
    assert set(re.findall(r"`(\w+)`", inner)) == claims["seed_results"]["42"].keys()


def test_the_readme_is_written_from_facts(written, folders):
    text = (written / "README.md").read_text()
    claim = json.loads((folders[1] / "submission" / "submission.json").read_text())
    assert f"| 43 | {claim['val_bpb']:.6f} | {claim['val_loss']:.6f} |" in text
    # A recipe of nobody is told against the nearest one, in the words of config.py.
    assert "compared with `golf/baseline`, the nearest of the shipped ones" in text
    assert "| `model.width` | 512 | 16 | Channels of the residual stream |" in text
    assert "`seed`" not in text and "budget_s" not in text
    assert "| train | yes |" in text and "| pack | no |" in text and "**on the budget**" in text
    assert re.search(r"\| left of the limit \| [\d,]+ \| [\d,]+ \| [\d,]+ \|", text)
    assert "| C2 | distribution | PASS | PASS | PASS |" in text
    assert "--seed 42 --seeds 3" in text
    columns = [line.count("|") for line in text.splitlines() if line.startswith("| seed |")]
    assert columns == [9]


def test_a_submission_of_several_seeds_is_verified_as_one(call, contest, written):
    found = call("verify", written, "--track", contest.track, "--level", "static", "--json")
    verdicts = json.loads(found.out)
    assert found.code == 0 and len(verdicts) == 4
    assert [result["id"] for result in verdicts[-1]["results"]] == ["parts"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "more.bin").write_bytes(b"x"), "more.bin is not in manifest.json"),
        (lambda f: (f / "README.md").unlink(), "README.md is listed and not there"),
        (lambda f: (f / "seed43" / "model.srz").write_bytes(b"x"), "seed43/model.srz is not the"),
        (lambda f: _claim(f, val_bpb=0.5), "val_bpb 0.5, the parts say"),
        (lambda f: _claim(f, val_bpb_std=0.0), "val_bpb_std 0, the parts say"),
        (lambda f: _claim(f, bytes_total=1), "bytes_total 1, the parts say"),
        (lambda f: _claim(f, seeds=[42, 43]), "seeds [42, 43], folders of 42, 43, 44"),
        (lambda f: _claim(f, track="pocket"), "track is 'tiny', the whole says 'pocket'"),
        (lambda f: _claim(f, seed_results={}), "folders of 42, 43, 44"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "only plain files"),
        (lambda f: (f / "submission.json").write_text("[" * 10_000), "submission.json"),
        (lambda f: (f / "seed43").rename(f / "seed45"), "seed45 holds seed 43"),
    ],
)
def test_a_whole_that_contradicts_its_parts_fails_by_name(copied, harm, said):
    harm(copied)
    found = whole(copied)
    assert found.status == "FAIL" and said in found.evidence, found


def _claim(folder: Path, **changes: object) -> None:
    path = folder / "submission.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_the_judge_would_fail_is_refused_with_what_mends_it(call, contest, folders, tmp_path):
    submit = ("submit", "--track", contest.track, "--out", tmp_path / "out")
    few = call(*submit, *folders[:2])
    assert few.code == 2
    assert "2 seeds, tiny asks for 3: run `speedrun run --seed 44 --seeds 1`" in few.error()
    assert call(*submit, *folders[:2], "--non-record").code == 0
    taken = call(*submit, *folders)
    assert "is there already" in taken.error()
    elsewhere = ("submit", "--track", contest.track, "--out", tmp_path / "other")
    twice = call(*elsewhere, folders[0], folders[0], folders[1])
    assert "seed 42 comes more than once" in twice.error()
    nothing = call(*elsewhere, tmp_path)
    assert "holds no submission" in nothing.error() and "--resume" in nothing.error()
    broken = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    (broken / "submission" / "README.md").write_text("other words")
    edited = call(*elsewhere, broken, *folders[1:])
    assert "hashes fails" in edited.err and "build the folder again" in edited.err
    assert not (tmp_path / "other").exists()


def test_the_golf_form_names_its_author_and_its_day(call, contest, folders, tmp_path):
    words = ("--track", contest.track, "--format", "golf")
    found = call("submit", *folders, *words, "--out", tmp_path / "mine", "--author", "anonymous")
    assert "YYYY-MM-DD_ShortTitle" in found.error() and "--github-id" in found.error()


def test_the_golf_form_is_what_forensics_finds_nothing_in(call, contest, written, tmp_path):
    out = tmp_path / "track_10min_16mb" / "2026-11-30_Tiny"
    # A submission turned into the other form keeps its author.
    found = call("submit", written, "--track", contest.track, "--format", "golf", "--out", out)
    assert found.code == 0, found.err
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "submission.json", "train_gpt.py", "train_gpt.source.txt"),
        *("train_seed42.log", "train_seed43.log", "train_seed44.log"),
    }
    claims = json.loads((out / "submission.json").read_text())
    assert claims["author"] == "Ada" and None not in claims.values()
    assert claims["bytes_code"] == (out / "train_gpt.py").stat().st_size
    (report,) = audit(out).reports
    assert len(report.logs) == 3
    serious = (Severity.BROKEN, Severity.CONTRADICTION)
    assert [str(each) for each in report.findings if each.severity in serious] == []


@pytest.mark.slow
def test_the_golf_form_trains_and_scores_under_plain_torchrun(call, contest, written, tmp_path):
    out = tmp_path / "2026-11-30_Tiny"
    words = ("--track", contest.track, "--format", "golf", "--out", out)
    assert call("submit", written, *words).code == 0
    # No `speedrun` to import: neither from here nor from where it is installed for development.
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "assert importlib.util.find_spec('speedrun') is None\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "train_gpt.py"),
        ],
        cwd=out,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(hide)}
        | {"OMP_NUM_THREADS": "1", "DATA_PATH": str(contest.data), "SEED": "7"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "final_sliding_window_exact val_loss:" in done.stdout
    assert (out / "model.srz").stat().st_size > 0


def test_every_setting_is_explained_where_it_is_declared():
    notes = explain_settings()
    settings = flatten(RunConfig(name="x").to_dict())
    assert [key for key in settings if not notes.get(key)] == []
