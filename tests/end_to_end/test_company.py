"""Protects runs of several processes: they pass the judge, and a death is told and survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speedrun.train.launch import OUR_ERROR, describe_failure

ROOT = Path(__file__).parents[2]


def _ranks_of(parent: int) -> dict[int, int]:
    """Rank -> process id, of the ranks that a process started."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, int(child))
    return found


def _wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(words):
            return
    pytest.fail(f"ended before {words!r}: {process.stderr and process.stderr.read()}")


@pytest.mark.slow
def test_two_ranks_make_a_submission_that_passes(contest, tmp_path):
    out = tmp_path / "runs"
    done = contest.run("run", "--track", contest.track, "--out", out, "--nproc", 2, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["verdict"]["status"] == "PASS" and facts["train_seconds"] <= 1.0
    assert "micro-batches on each of 2 ranks" in done.err
    assert f"replicas:2 step:{facts['steps']} checksum:" in done.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_weights(contest, tmp_path):
    settings = ["--set", "train.max_steps=60", "--set", "train.checkpoint_every_s=0.05"]
    words = ["run", "--track", contest.track, "--budget", "10min", "--nproc", 2, *settings]

    def weights(process: subprocess.Popen[str], folder: Path | None = None) -> bytes:
        _wait_for(process, "packing")
        process.terminate()
        process.communicate(timeout=60)
        folder = folder or next((tmp_path / "whole").iterdir())
        return (folder / "weights.safetensors").read_bytes()

    whole = weights(contest.start(*words, "--out", tmp_path / "whole"))
    process = contest.start(*words, "--out", tmp_path / "killed")
    _wait_for(process, "step:10/")
    (folder,) = (tmp_path / "killed").iterdir()
    while not (folder / "checkpoint" / "state.safetensors").exists():
        time.sleep(0.02)
    os.kill(_ranks_of(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("error: rank 1 was killed by SIGKILL") and err.count("\n") == 1, err
    assert f"speedrun run --resume {folder} --nproc 2" in err
    resumed = contest.start("run", "--resume", folder, "--nproc", 2)
    assert weights(resumed, folder) == whole


@pytest.mark.slow
def test_ctrl_c_reaches_all_ranks_and_saves(contest, tmp_path):
    words = ["run", "--track", contest.track, "--budget", "10min", "--nproc", 2]
    process = contest.start(*words, "--out", tmp_path)
    _wait_for(process, "step:10/")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("error: interrupted; the checkpoint is saved") and err.count("\n") == 1
    (folder,) = tmp_path.iterdir()
    assert (folder / "checkpoint" / "state.safetensors").exists()


@pytest.mark.slow
def test_a_ranks_own_error_is_the_runs(contest, tmp_path):
    words = ["run", "--track", contest.track, "--out", tmp_path, "--nproc", 3]
    done = contest.run(*words)
    assert done.code == 2
    assert "tokens_per_step = 128 is 4 sequences, which 3 ranks cannot share" in done.error()


@pytest.mark.slow
def test_torchrun_starts_the_bundle(contest, runs, tmp_path):
    bundle = next(path for path in runs.iterdir() if path.is_dir()) / "submission/train_gpt.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(bundle), "--data", str(contest.data), "--out", str(tmp_path), "--budget", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "micro-batches on each of 2 ranks" in done.stdout
    assert (tmp_path / "model.srz").exists()


class Failure:
    """As torch tells it."""

    def __init__(self, exitcode: int, message: object = "", timestamp: int = 0) -> None:
        self.exitcode, self.message, self.timestamp = exitcode, message, timestamp


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        (
            {0: Failure(1, "Connection closed by peer", 5), 1: Failure(-9, "Signal 9", 6)},
            "rank 1 was killed by SIGKILL; out of memory?",
        ),
        ({0: Failure(-15), 2: Failure(-11)}, "rank 2 was killed by SIGSEGV"),
        (
            {0: Failure(1, "Connection closed", 3), 1: Failure(2, f"{OUR_ERROR}no room", 4)},
            "rank 1: no room",
        ),
        (
            {1: Failure(-15, {"message": f"E: {OUR_ERROR}no  room", "extraInfo": {}})},
            "rank 1: no room",
        ),
        ({0: Failure(1, "Connection closed", 8), 3: Failure(1, "KeyError: 'x'", 7)}, "rank 3: Key"),
    ],
)
def test_the_cause_is_told_and_not_what_it_brought_about(failures, told):
    assert describe_failure(failures).startswith(told)


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["--nnodes", "2"], {}, "need both --nnodes N and --rdzv HOST:PORT"),
        (["--rdzv", "a:1"], {}, "need both --nnodes N and --rdzv HOST:PORT"),
        ([], {"WORLD_SIZE": "2"}, "starts its processes itself"),
    ],
)
def test_a_company_that_cannot_be_formed_is_refused(
    contest, call, tmp_path, monkeypatch, words, variables, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = call("run", "--track", contest.track, "--out", tmp_path / "runs", *words)
    assert done.code == 2 and message in done.error()
    assert not (tmp_path / "runs").exists()
