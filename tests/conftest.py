"""A contest small enough to be run for real: a text, a tokenizer, a recipe, a track of a second."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

# Workers share the cores; torch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

PACKAGE = Path(__file__).parents[1]
PHRASES = ("def ", "return ", "self.", "for x in range(9):", " naïve", "None", "the words ", "())")
RECIPE = """
name = "tiny/tiny"

[model]
vocab_size = {vocab_size}
num_layers = 2
width = 16
num_heads = 2
num_kv_heads = 1
mlp_hidden = 32
embedding_std = 0.02

[data]
sequence_length = 32
tokens_per_step = 128
micro_batch_tokens = 128
order = "shuffled"

[train]
compile = "no"
warmup_steps = 1
log_every_steps = 100
checkpoint_every_s = 0.2

[quant]
small_tensor_limit = 256

[evaluation]
context = 32
stride = 16
"""
TRACK = """
name = "tiny"
version = 1
summary = "A second on one core"
train_seconds = 1.0
eval_seconds = 120.0
cap_bytes = 100_000
corpus = '{data}'
recipe = '{recipe}'
hardware = "any CPU"
"""


@dataclass(frozen=True)
class Contest:
    """Files of the tiny contest, and ways to start the program on it."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def track(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    def alone(self) -> FileLock:
        """Held by the worker that makes what all of them share."""
        return FileLock(self.folder / "lock", timeout=300)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """The program in a process of its own, in the contest's folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "speedrun", *map(str, words)],
            cwd=self.folder,
            env=os.environ
            | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
            | {"SPEEDRUN_CACHE": os.environ.get("SPEEDRUN_CACHE", str(self.folder / "cache"))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object) -> Outcome:
        """Start the program and wait for its end."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        return Outcome(process.returncode, out, err)


@dataclass(frozen=True)
class Outcome:
    """What a call of the program gave."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line of an error, without anything on stdout."""
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture(scope="session")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    """The same for all workers: what one has made the others find."""
    from speedrun.data.prepare import prepare_dataset
    from speedrun.data.tokenizer import train_tokenizer

    base = tmp_path_factory.getbasetemp()
    found = Contest((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "contest")
    found.folder.mkdir(exist_ok=True)
    with found.alone():
        if found.track.exists():
            return found
        dice = random.Random(7)
        documents = [
            (
                f"doc{index}",
                "".join(
                    "    " * dice.randrange(4) + "".join(dice.choices(PHRASES, k=6)) + "\n"
                    for _ in range(dice.randrange(1, 30))
                ),
            )
            for index in range(100)
        ]
        texts = [text for _, text in documents]
        tokenizer = train_tokenizer(texts, 300, found.folder / "tokenizer.model")
        prepare_dataset(documents, tokenizer, found.data, name="tiny", validation_count=8)
        found.recipe.write_text(RECIPE.format(vocab_size=tokenizer.vocab_size))
        found.track.write_text(TRACK.format(data=found.data, recipe=found.recipe))
    return found


@pytest.fixture
def call(
    contest: Contest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """The program called in this process: torch is imported once, and parts can be replaced."""
    from speedrun.cli.main import main

    def call(*words: object) -> Outcome:
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", ["speedrun", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "80")
        if "SPEEDRUN_CACHE" not in os.environ:
            monkeypatch.setenv("SPEEDRUN_CACHE", str(contest.folder / "cache"))
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        return Outcome(int(left.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def finished(runs: Path, tmp_path: Path) -> Path:
    """A finished run folder to do harm to."""
    first = min(path for path in runs.iterdir() if path.is_dir())
    return Path(shutil.copytree(first, tmp_path / "finished" / first.name))


@pytest.fixture(scope="session")
def runs(contest: Contest) -> Path:
    """Three finished runs with their table, made by one real call of the program."""
    out = contest.folder / "runs"
    with contest.alone():
        if not (contest.folder / "stdout").exists():
            words = ("run", "--track", contest.track, "--seeds", 3, "--out", out, "--json")
            done = contest.run(*words)
            assert done.code == 0, done.err
            (contest.folder / "stderr").write_text(done.err)
            (contest.folder / "stdout").write_text(done.out)
    return out


@pytest.fixture(scope="session")
def shared_records() -> Path:
    """The published records that some machines have; without them the test is skipped."""
    named = os.environ.get("SPEEDRUN_SHARED")
    candidates = [Path(named)] if named else []
    candidates += [parent / "shared" for parent in Path(__file__).resolve().parents]
    for shared in candidates:
        for records in (shared / "data" / "golf-records", shared / "golf-records"):
            if records.is_dir():
                return records
    pytest.skip("no shared/data/golf-records beside the repository; set SPEEDRUN_SHARED to shared/")
