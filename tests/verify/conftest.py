"""Builds real submission folders around tiny numpy predictors that run in real processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import speedrun.predict
from speedrun.bpb import score
from speedrun.clock import Ledger, Phase
from speedrun.config import EvalConfig, ModelConfig, RunConfig
from speedrun.errors import DataError
from speedrun.pack.container import Section, write_container
from speedrun.pack.submission import SubmissionFacts, write_submission
from speedrun.tracks.load import Track

VOCAB = 8
RUN = RunConfig(
    name="test/bigram",
    model=ModelConfig(vocab_size=VOCAB),
    evaluation=EvalConfig(context=32, stride=8, batch_windows=4),
)


@dataclass
class Text:
    """As much of a dataset as the judge asks for."""

    tokens: np.ndarray
    fingerprint: str = "f" * 64
    val_raw_bytes: int = 5_000
    val_token_bytes: int = 4_000
    bos_id: int = VOCAB - 1
    train_shards: tuple[Path, ...] = ()
    manifest: None = None

    def val_tokens(self) -> np.ndarray:
        return self.tokens

    def verify_validation(self) -> None:
        pass

    def tokenizer(self) -> None:
        raise DataError("numbers only, no text")


class Bigram:
    """The honest predictor, in process: counts of pairs with one added to each."""

    vocab_size, kind = VOCAB, "fixed"

    def __init__(self, text: np.ndarray) -> None:
        counts = np.ones((VOCAB, VOCAB))
        np.add.at(counts, (text[:-1], text[1:]), 1)
        self.table = np.log(counts).round(3).astype(np.float32)

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return self.table[tokens[asked]]

    def observe(self, tokens: np.ndarray) -> None:
        raise AssertionError("a fixed predictor is never told")


HONEST = """
class Submitted:
    vocab_size, kind = TABLE.shape[0], "fixed"
    def predict(self, tokens, scored_from):
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return TABLE[tokens[asked]]
    def observe(self, tokens):
        pass
"""


def script(table: np.ndarray, predictor: str = HONEST, start: str = "") -> bytes:
    """A `train_gpt.py` that needs nothing but numpy: the protocol's own file and a predictor."""
    protocol = Path(speedrun.predict.__file__).read_text(encoding="utf-8")
    errors = "from speedrun.errors import PredictorError\n"
    assert errors in protocol
    return (
        protocol.replace(errors, "class PredictorError(Exception): pass\n")
        + f"\nTABLE = np.array({table.tolist()}, np.float32)\n{predictor}\n{start}\n"
        + "connection = take_stdio()\nserve(Submitted(), connection)\n"
    ).encode()


def list_again(folder: Path) -> None:
    """Write a manifest that agrees with the files, as a cheat would."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    manifest = {"schema_version": 1, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@dataclass
class Bench:
    """A text, a track, the true score, and a maker of submissions for them."""

    folder: Path
    text: Text
    track: Track
    true_bpb: float
    true_loss: float
    table: np.ndarray

    def relist(self, folder: Path) -> None:
        list_again(folder)

    def submit(
        self, *, code: bytes | None = None, claim: float | None = None, run: RunConfig = RUN,
        phases: tuple[Phase, ...] = (), **changes: Any,
    ) -> Path:  # fmt: skip
        """An honest submission, unless told otherwise; `changes` go into its facts."""
        (self.folder / "ledger.jsonl").unlink(missing_ok=True)
        ledger = Ledger(self.folder / "ledger.jsonl")
        for phase in phases or (
            Phase(name="compile", start_s=0.0, stop_s=5.0, on_budget=False),
            Phase(name="train", start_s=5.0, stop_s=64.5, on_budget=True),
        ):
            ledger.append(phase)
        (self.folder / "train.log").write_text("step:1/1 train_loss:2.0\n")
        facts = SubmissionFacts(
            name=run.name, seed=run.seed, author="Ada", date="2026-01-02",
            val_bpb=self.true_bpb if claim is None else claim,
            val_loss=self.true_loss, step_stop=10, wallclock_seconds=ledger.budgeted_s,
            eval_time_seconds=1.0,
            model_params=64, hardware="any CPU", pytorch_version="2.13.0",
            data_fingerprint=self.text.fingerprint,
        )  # fmt: skip
        out = self.folder / "submission"
        write_submission(
            out,
            weights_bytes=write_container([Section({"t": self.table})], {"run": run.to_dict()}),
            bundle=code or script(self.table),
            facts=dataclasses.replace(facts, **changes),
            logs={name: self.folder / name for name in ("train.log", "ledger.jsonl")},
            track=self.track,
        )
        return out

    def submit_predictor(self, predictor: str, start: str = "") -> Path:
        """A submission with another predictor, or one that does something before it serves."""
        return self.submit(code=script(self.table, predictor, start))


@pytest.fixture(name="bench")
def bench_fixture(tmp_path: Path) -> Bench:
    rng = np.random.default_rng(5)
    step = rng.choice(VOCAB, size=2_001, p=[0.5, 0.2, 0.1, 0.1, 0.025, 0.025, 0.025, 0.025])
    tokens = (np.cumsum(step) % VOCAB).astype(np.uint16)
    predictor = Bigram(tokens)
    text = Text(tokens)
    found = score(
        predictor, tokens, num_bytes=text.val_raw_bytes, context=32, stride=8, batch_windows=4
    )
    assert found.bpb < 2_000 * math.log2(VOCAB) / text.val_raw_bytes
    track = Track(
        name="test", version=3, summary="", train_seconds=60.0, eval_seconds=20.0,
        cap_bytes=100_000, corpus="none", recipe="none", hardware="any CPU",
    )  # fmt: skip
    return Bench(tmp_path, text, track, found.bpb, found.nats_per_token, predictor.table)
