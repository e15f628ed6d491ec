"""Protects what ships: the bundle alone trains and predicts as we would, or says why it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from speedrun.bpb import score
from speedrun.clock import read_ledger
from speedrun.config import (
    CountConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from speedrun.data.shards import write_shard
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import FormatError
from speedrun.pack.bundle import build_bundle
from speedrun.pack.container import Section, write_container
from speedrun.pack.weights import unpack_weights
from speedrun.standalone import count_bytes, load_predictor, main
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import Cell

RUN = RunConfig(
    name="test/standalone",
    model=ModelConfig(
        vocab_size=64,
        num_layers=2,
        width=32,
        num_heads=2,
        num_kv_heads=1,
        mlp_hidden=48,
        ngram_order=3,
        match_order=2,
    ),
    count=CountConfig(entries=(200, 300), min_count=2, held_out_tokens=5_000),
    data=DataConfig(sequence_length=64, tokens_per_step=512, micro_batch_tokens=512),
    train=TrainConfig(budget_s=2.0, warmup_steps=1, compile="no"),
    evaluation=EvalConfig(context=64, stride=16, batch_windows=8),
)
VAL_BYTES = 4_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder as far as a bundle reads it."""
    folder = tmp_path_factory.mktemp("data")
    dice = np.random.default_rng(5)
    for split, tokens in (("train", 20_000), ("val", 1_500)):
        stream = 2 + np.cumsum(dice.integers(0, 4, tokens)) * 7 % 62
        write_shard(folder / f"text_{split}_000000.bin", stream)
    (folder / "manifest.json").write_text(json.dumps({"val_raw_bytes": VAL_BYTES}))
    return folder


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `train_gpt.py` in `folder`, in an interpreter that finds no `speedrun` of ours."""
    return subprocess.run(
        [sys.executable, "-I", "train_gpt.py", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def bundle() -> bytes:
    return build_bundle(RUN)


@pytest.fixture
def alone(bundle: bytes, tmp_path: Path) -> Path:
    """A folder that holds the bundle and nothing else."""
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "train_gpt.py").write_bytes(bundle)
    return folder


@pytest.fixture(scope="module")
def trained(bundle: bytes, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the bundle has trained, on data and a seed named by the environment."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train_gpt.py").write_bytes(bundle)
    result = start(folder, "--out", "out", "--budget", "1.5", DATA_PATH=str(data), SEED="9")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (folder / "out" / "train.log").read_text()
    return folder


def test_bundle_trains_inside_its_budget(trained: Path) -> None:
    phases = read_ledger(trained / "out" / "ledger.jsonl")
    assert 0.5 < sum(phase.seconds for phase in phases if phase.on_budget) <= 1.5
    assert {"set-up", "warm-up", "count", "train"} <= {phase.name for phase in phases}


def test_bundle_leaves_a_model_a_log_and_nothing_else(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "out").iterdir()) == [
        *("ledger.jsonl", "metrics.jsonl", "model.srz", "train.log")
    ]
    assert {path.name for path in trained.iterdir()} == {"out", "train_gpt.py"}
    log = (trained / "out" / "train.log").read_text()
    assert re.search(r"^stopping_early: wallclock_cap train_time:\d+ms step:\d+/", log, re.M)
    size = (trained / "out" / "model.srz").stat().st_size
    assert f"Serialized model: {size} bytes\n" in log


def test_model_says_how_it_was_trained(trained: Path) -> None:
    meta, _ = unpack_weights((trained / "out" / "model.srz").read_bytes())
    run = RunConfig.from_dict(meta["run"])
    assert (run.name, run.seed, run.train.budget_s, run.model) == (RUN.name, 9, 1.5, RUN.model)


def test_bundle_predicts_what_we_would(trained: Path, data: Path, tmp_path: Path) -> None:
    packed = (trained / "out" / "model.srz").read_bytes()
    tokens = np.fromfile(data / "text_val_000000.bin", "<u2", offset=1024)
    numbers = {"num_bytes": VAL_BYTES, "context": 64, "stride": 16, "batch_windows": 8}
    ours = score(load_predictor(packed)[1], tokens, **numbers)
    shutil.copy(trained / "train_gpt.py", tmp_path)
    (tmp_path / "model.srz").write_bytes(packed)
    with (
        Cell(tmp_path) as cell,
        RemotePredictor(cell, ["train_gpt.py", "predict", "model.srz"], budget_s=100) as remote,
    ):
        theirs = score(remote, tokens, **numbers)
    assert theirs.bpb == pytest.approx(ours.bpb, abs=1e-6)
    assert ours.nats_per_token < 3.0  # a guess among 64 is 4.16
    log = (trained / "out" / "train.log").read_text()
    (logged,) = re.findall(r"^final_sliding_window_exact .* val_bpb:(\S+) stride:16 ", log, re.M)
    assert float(logged) == pytest.approx(ours.bpb, abs=1e-6)


def test_a_predictor_does_not_load_the_compiler(trained: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from speedrun.standalone import load_predictor\n"
        "predictor = load_predictor(Path('out/model.srz').read_bytes())[1]\n"
        "predictor.predict(np.zeros((1, 64), np.int64), np.array([60]))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=trained, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_missing_data_is_one_clear_line(alone: Path) -> None:
    result = start(alone, "--data", "nowhere", "--out", "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no train shards in nowhere: expected files like")
    assert result.stderr.count("\n") == 1
    assert not (alone / "out").exists()


def test_predicting_without_a_model_is_one_clear_line(alone: Path) -> None:
    result = start(alone, "predict")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: model.srz: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0.00001"], r"a budget of 0\.000 s does not hold one step of \d\.\d+ s; .*"),
        (["--out", "taken"], r"taken: cannot write there: File exists"),
        (["--out", "taken/deeper"], r"taken/deeper: cannot write there: Not a directory"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", "--data", str(data), *arguments])
    with pytest.raises(SystemExit) as caught:
        main(RUN)
    assert caught.value.code == 2
    assert re.fullmatch(f"error: {message}\n", capsys.readouterr().err)
    assert not Path("model.srz").exists()


def test_weights_that_do_not_fit_their_settings_are_refused() -> None:
    packed = write_container(
        [Section({"skip_weights": np.zeros((1, 32), np.float16)})], {"run": RUN.to_dict()}
    )
    with pytest.raises(FormatError, match="weights and settings do not fit"):
        load_predictor(packed)


def test_bytes_by_the_tokenizer_are_those_of_its_table(tmp_path: Path) -> None:
    # As the contest trains its own: a space before each document, bytes for what it lacks.
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\na naïve word or two\nno more of it\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        **{"input": str(text), "model_prefix": str(tmp_path / "small"), "vocab_size": 290},
        **{"byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2},
    )
    path = tmp_path / "small.model"
    tokenizer = Tokenizer.load(path)
    dice = np.random.default_rng(8)
    stream = dice.integers(0, tokenizer.vocab_size, 5_000).astype(np.uint16)
    assert count_bytes(stream, str(path)) == tokenizer.byte_table().total(stream)
    # What is beyond the alphabet stands for no bytes, as in the contest's script.
    assert count_bytes(np.array([1, 60_000], np.uint16), str(path)) == 0
