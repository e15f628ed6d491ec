"""Protects reproduction: what trains as well as it claims passes, what cheats is caught by name.

The trainers are real processes in real cells, but scripts of a few lines that need only numpy.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speedrun.clock import Phase
from speedrun.config import EvalConfig, ModelConfig, RunConfig, TrainConfig
from speedrun.data.shards import write_shard
from speedrun.pack.container import Section, write_container
from speedrun.verify import retrain as module
from speedrun.verify import sandbox
from speedrun.verify.retrain import DEFAULT_SPREAD, expect, retrain
from speedrun.verify.verdict import RuleResult, Status
from speedrun.verify.walls import why_unsandboxed

needs_bubblewrap = pytest.mark.skipif(bool(why_unsandboxed()), reason=why_unsandboxed() or "-")

VOCAB = 8
RUN = RunConfig(
    name="test/bigram", seed=42,
    model=ModelConfig(vocab_size=VOCAB),
    train=TrainConfig(budget_s=0.4),
    evaluation=EvalConfig(context=32, stride=8, batch_windows=4),
)  # fmt: skip

FUTURE = b"from __future__ import annotations\n"
TRAINER = """
import hashlib, json, os, sys, time
from pathlib import Path
if sys.argv[1:2] != ["predict"]:
    import argparse, base64
    parser = argparse.ArgumentParser()
    for option, kind in {{"--data": Path, "--out": Path, "--seed": int, "--budget": float}}.items():
        parser.add_argument(option, type=kind)
    given = parser.parse_args()
    MODEL = base64.b64decode({model!r})
    booked, previous = [], "0" * 64
    def book(phase, seconds, on_budget=False, **details):
        global previous
        start_s = sum(booked)
        booked.append(seconds)
        entry = {{"phase": phase, "start_s": start_s, "stop_s": sum(booked), "on_budget": on_budget,
                  "details": details, "previous": previous}}
        line = json.dumps(entry, sort_keys=True).encode()
        previous = hashlib.sha256(line).hexdigest()
        with open(given.out / "ledger.jsonl", "ab") as file:
            file.write(line + b"\\n")
    def say(step, seconds):
        print(f"step:{{step}}/99 train_loss:1.0 train_time:{{1000 * seconds:.0f}}ms step_avg:1.0ms",
              flush=True)
    def finish(model=MODEL):
        (given.out / "model.srz").write_bytes(model)
{body}
    sys.exit(0)
"""
FORGETFUL = """
if {worse!r} == hashlib.sha256(Path("model.srz").read_bytes()).hexdigest():
    TABLE = TABLE * 0
"""
HONEST = """
time.sleep(0.05)
book("set-up", 0.05)
say(1, 0.0)
time.sleep(0.2)
say(10, 0.2)
book("train", 0.2, True, steps=10)
finish()
"""


def packed(table: np.ndarray, note: str = "") -> bytes:
    return write_container([Section({"t": table})], {"run": RUN.to_dict(), "note": note})


@dataclasses.dataclass
class Trainers:
    """Submissions whose code trains in some way, and the judge for them."""

    bench: Any
    script: Callable[..., bytes]

    def submit(self, body: str = HONEST, *, worse: bool = False, **changes: Any) -> Path:
        """Code with this training; `worse` gives a model that knows nothing."""
        table = self.bench.table
        model = packed(table, "worse" if worse else "")
        indented = "\n".join("    " + line for line in body.splitlines())
        trainer = TRAINER.format(model=base64.b64encode(model).decode(), body=indented)
        forgets = FORGETFUL.format(worse=hashlib.sha256(packed(table, "worse")).hexdigest())
        # Training comes first: numpy is imported by those who predict.
        code = self.script(table, start=forgets)
        assert code.count(FUTURE) == 1
        code = code.replace(FUTURE, FUTURE + trainer.encode())
        return Path(self.bench.submit(code=code, run=RUN, **changes))

    def judge(self, folder: Path, **options: Any) -> RuleResult:
        options = {"track": self.bench.track, "dataset": self.bench.text, "set_up_s": 20} | options
        found = retrain(folder, **options)
        assert found.id == "retrain" and "\n" not in found.evidence + found.fix
        return found


@pytest.fixture
def trainers(bench: Any, tmp_path: Path) -> Trainers:
    shard = tmp_path / "text_train_000000.bin"
    write_shard(shard, np.arange(100) % VOCAB)
    bench.text.train_shards = (shard,)
    return Trainers(bench, sys.modules[type(bench).__module__].script)


def failed(found: RuleResult, *said: str) -> None:
    assert found.status is Status.FAIL, found
    for words in said:
        assert words in found.evidence, found.evidence


def test_a_claim_that_is_reached_passes_and_both_clocks_are_shown(trainers: Trainers) -> None:
    found = trainers.judge(trainers.submit())
    assert found.status is Status.PASS, found
    assert found.measured == f"{trainers.bench.true_bpb:.6f} bpb after 10 steps"
    shown = (
        r"seed 42: 0\.200 s on the budget \(\d\.\d s by the judge's clock\), \d\.\d s booked off"
    )
    assert re.match(shown, found.evidence)
    assert "for want of a measured one" in found.evidence
    assert found.limit.startswith(f"<= {trainers.bench.true_bpb:.6f} + ")


def test_a_better_result_than_the_claim_is_fine(trainers: Trainers) -> None:
    folder = trainers.submit(claim=trainers.bench.true_bpb + 0.3)
    assert trainers.judge(folder).status is Status.PASS


def test_a_claim_that_is_not_reached_fails(trainers: Trainers) -> None:
    found = trainers.judge(trainers.submit(worse=True))
    failed(found, f"claimed {trainers.bench.true_bpb:.6f}")
    assert found.measured == f"{2_000 * 3 / 5_000:.6f} bpb after 10 steps"  # three bits a token


def test_a_spread_that_allows_for_it_lets_a_worse_result_pass(trainers: Trainers) -> None:
    claims = [trainers.bench.true_bpb + shift for shift in (-0.1, 0.0, 0.1)]
    found = trainers.judge(trainers.submit(worse=True), claims=claims)
    assert found.status is Status.PASS
    assert "spread of the 3 seeds handed in, 0.1000" in found.evidence


def test_a_slower_machine_that_cannot_reach_the_claim_proves_nothing(trainers: Trainers) -> None:
    found = trainers.judge(trainers.submit(worse=True, step_stop=11, hardware="a fast CPU"))
    assert found.status is Status.UNDECIDED
    assert "here 10 steps on " in found.evidence and "claimed 11 on 'a fast CPU'" in found.evidence
    assert "a slower machine" in found.evidence


def test_a_contest_on_gpus_is_not_decided_without_them(trainers: Trainers) -> None:
    import torch

    track = dataclasses.replace(trainers.bench.track, num_gpus=torch.cuda.device_count() + 1)
    found = trainers.judge(trainers.submit("sys.exit('CUDA error')"), track=track)
    assert found.status is Status.UNDECIDED and "CUDA error" in found.evidence
    assert found.fix == "judge on any CPU"


def test_a_step_that_does_not_fit_is_the_machine_and_not_the_claim(trainers: Trainers) -> None:
    body = (
        "sys.exit('error: a budget of 0.400 s does not hold one step of 2.6 s; raise --budget or "
        "lower data.tokens_per_step')"
    )
    found = trainers.judge(trainers.submit(body))
    assert found.status is Status.UNDECIDED and "slower than the claim's, or busy" in found.evidence


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('lost it\\x1b[2J')", "exit code 1 after"),
        ("os.kill(os.getpid(), 9)", "the training ended with exit code"),
        ("pass", "without writing model.srz: No such file"),
        ("finish()", "left no ledger"),
        (HONEST + "finish(bytes(200_000))", "no plain file of at most 100,000 bytes: 200,000"),
        (HONEST + "finish(bytes(99_999))", "code and retrained model have"),
        (HONEST + "finish(b'pickle')", "does not open: not a model.srz"),
        (HONEST + "(given.out / 'model.srz').unlink()\n"
         "(given.out / 'model.srz').symlink_to(given.data / 'text_train_000000.bin')",
         "no plain file"),
        (HONEST + "(given.out / 'ledger.jsonl').unlink()\n"
         "(given.out / 'ledger.jsonl').symlink_to('/dev/zero')", "no plain file of a ledger's"),
        # What was handed in is not there to be handed out again.
        (HONEST + "finish(Path('model.srz').read_bytes())", "does not open"),
        (HONEST.replace('"train", 0.2', '"train", 0.5'), "the budget is overrun: 0.500 s on"),
        (HONEST.replace('"train", 0.2, True', '"train", 0.5'), "the budget is overrun: 0.500 s on"),
        (HONEST.replace("steps=10", "steps=0"), "the ledger books no steps"),
        (HONEST + "book('evaluate', 90)", "the ledger books more time than passed"),
        (HONEST + "os.close(1); os.close(2); time.sleep(60)", "it ran for more than 1 s"),
        ("while True: print('x' * 9999)", "was ended because it ran for more than 1 s"),
    ],
    ids=[
        *("dies", "kills itself", "no model", "no ledger", "over the cap", "over with code"),
        *("pickle", "link", "ledger link", "hand out again", "overrun", "off the budget"),
        *("no steps", "fast clock", "closes its output", "babbles"),
    ],
)  # fmt: skip
def test_a_training_that_breaks_a_rule_is_caught(trainers: Trainers, body: str, said: str) -> None:
    found = trainers.judge(trainers.submit(body), set_up_s=0.6 if "than 1 s" in said else 20)
    failed(found, said)
    assert "\x1b" not in found.evidence


def test_a_clock_that_runs_slow_is_caught_by_the_lines_of_the_log(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOCK_S", 0.3)
    body = HONEST.replace("sleep(0.2)", "sleep(0.8)")
    failed(trainers.judge(trainers.submit(body)), "the judge's clock saw more training than the")


def test_time_that_no_phase_explains_is_caught() -> None:
    phases = [Phase(name="train", start_s=0, stop_s=50, on_budget=True, details={"steps": 9})]
    task: Any = SimpleNamespace(budget_s=60.0)
    for wall_s, judged_s in ((109.0, 50.0), (109.0, None), (60.0, 52.4)):
        module._check_time(module._Course(phases, wall_s, judged_s, "", 50.0), task, 120.0)
    for wall_s, judged_s, said in (
        (111.0, 50.0, "61.0 s are in no phase of the ledger"),
        (109.0, 52.6, "the judge's clock saw more training than the ledger books"),
        (47.0, None, "the ledger books more time than passed"),
    ):
        with pytest.raises(module._BrokenError, match=said):
            module._check_time(module._Course(phases, wall_s, judged_s, "", 50.0), task, 120.0)


def test_a_folder_that_fills_up_ends_the_training(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "for n in range(99):\n    (given.out / str(n)).write_bytes(bytes(10_000)); time.sleep(0.1)"
    )
    monkeypatch.setattr(module, "MOST_BYTES", 25_000)
    track = dataclasses.replace(trainers.bench.track, cap_bytes=6_000)
    found = trainers.judge(trainers.submit(body), track=track)
    failed(found, "wrote more than 25,000 bytes and was ended after")


@needs_bubblewrap
def test_only_training_shards_can_be_read_and_only_out_written(trainers: Trainers) -> None:
    folder = trainers.bench.folder
    (folder / "text_val_000000.bin").write_bytes(b"the text")
    body = (
        f"""
import socket
assert os.listdir(given.data) == ["text_train_000000.bin"]
assert os.listdir(given.out) == []
for path in ("{folder}/text_val_000000.bin", "{folder}", os.path.expanduser("~/.cache")):
    assert not os.path.exists(path), path
for path in (given.data / "text_train_000000.bin", given.data / "new", "train_gpt.py", "/x"):
    try:
        open(path, "ab").write(b"x")
    except OSError:
        continue
    raise AssertionError(path)
try:
    socket.create_connection(("1.1.1.1", 53), 2)
except OSError as error:
    assert "unreachable" in str(error)
else:
    raise AssertionError("network")
assert os.path.getsize("model.srz") == 0
assert (given.seed, given.budget) == (42, 0.4)
"""
        + HONEST
    )
    found = trainers.judge(trainers.submit(body))
    assert found.status is Status.PASS, found.evidence
    assert "in bubblewrap" in found.evidence


def test_without_bubblewrap_it_trains_and_says_so(
    trainers: Trainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "best_walls", lambda: (sandbox.Walls.NONE, "not here"))
    body = "assert os.listdir(given.data) == ['text_train_000000.bin']\n" + HONEST
    folder = trainers.submit(body)
    refused = trainers.judge(folder)
    assert refused.status is Status.UNDECIDED and "--allow-unsandboxed" in refused.evidence
    found = trainers.judge(folder, allow_unsandboxed=True)
    assert found.status is Status.PASS, found
    assert "in UNSANDBOXED: not here" in found.evidence


def test_code_that_does_not_train_is_undecided_and_says_so(trainers: Trainers) -> None:
    found = trainers.judge(trainers.bench.submit())
    assert found.status is Status.UNDECIDED and "holds no training code" in found.evidence


def test_other_or_damaged_data_leave_it_undecided(trainers: Trainers) -> None:
    folder, text = trainers.submit(), trainers.bench.text
    assert "no training shards here" in trainers.judge(folder, dataset=None).evidence

    class Entry:
        split, file, sha256 = "train", "text_train_000000.bin", "0" * 64

    class Manifest:
        shards = (Entry,)

    text.manifest, text.folder = Manifest, trainers.bench.folder
    found = trainers.judge(folder)
    assert (found.status, found.fix) == (Status.UNDECIDED, "prepare the dataset again")
    text.fingerprint = "e" * 64
    assert "here is 'eeeeeeeeeeee'" in trainers.judge(folder).evidence


@pytest.mark.parametrize("seed", ["42", -1, None, True, 10**400])
def test_a_claim_without_a_seed_is_undecided(trainers: Trainers, seed: Any) -> None:
    folder = trainers.submit()
    path = folder / "submission.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": seed}))
    found = trainers.judge(folder)
    assert found.status is Status.UNDECIDED and "names no seed" in found.evidence


def test_a_machine_with_several_gpus_starts_a_process_for_each(tmp_path: Path) -> None:
    assert module._launcher(1) == ["train_gpt.py"]
    command = [sys.executable, "-I", *module._launcher(3), "--seed", "1"]
    code = """
import os, sys, time
rank = os.environ["RANK"]
assert sys.argv[1:] == ["--seed", "1"] and os.environ["LOCAL_RANK"] == rank
open(f"rank{rank}of" + os.environ["WORLD_SIZE"], "w").close()
"""
    (tmp_path / "train_gpt.py").write_text(code)
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    found = sorted(path.name for path in tmp_path.glob("rank*"))
    assert found == ["rank0of3", "rank1of3", "rank2of3"]
    # One that fails takes the others along, or they would wait for it.
    (tmp_path / "train_gpt.py").write_text(code + "rank == '1' and sys.exit(7)\ntime.sleep(60)")
    assert subprocess.run(command, cwd=tmp_path, check=False, timeout=50).returncode == 7


def test_tolerances_worked_by_hand() -> None:
    # Known spread: z(0.99) = 2.3263 over one claim and one new run.
    found = expect(1.0, spread=0.01)
    assert (found.mean, found.reach) == (1.0, pytest.approx(0.023263 * math.sqrt(2), rel=1e-4))
    # Three seeds 0.01 apart: t(0.99, 2) = 6.9646 around their mean.
    found = expect(1.0, claims=[1.0, 1.01, 1.02], record=[5.0, 6.0])
    assert found.mean == pytest.approx(1.01)
    assert found.reach == pytest.approx(0.069646 * math.sqrt(4 / 3), rel=1e-4)
    # A record lends its spread, not its mean.
    found = expect(1.0, claims=[1.0], record=[2.0, 2.01, 2.02])
    assert (found.mean, found.reach) == (1.0, pytest.approx(0.069646 * math.sqrt(2), rel=1e-4))
    assert "standing record's 3 seeds" in found.source
    found = expect(2.0)
    assert found.reach == pytest.approx(2.3263 * DEFAULT_SPREAD * 2.0 * math.sqrt(2), rel=1e-4)
    # Equal seeds still differ in the last digits between machines.
    assert expect(1.0, claims=[1.0, 1.0]).reach == 1e-4
