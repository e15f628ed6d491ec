"""A contest for cheats and honest people: a real text, a real tokenizer, complete submissions.

A predictor is a file like those that competitors write, `load(arrays)` and a class; its docstring
says what it does. Here it is packed, handed in with the score that it reaches in process, and
judged in the sandbox.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speedrun.bpb import score
from speedrun.clock import Ledger, Phase
from speedrun.config import EvalConfig
from speedrun.data.dataset import Dataset
from speedrun.data.prepare import prepare_dataset
from speedrun.data.shards import open_shard
from speedrun.data.tokenizer import train_tokenizer
from speedrun.errors import PredictorError
from speedrun.pack.predictor import pack_predictor
from speedrun.pack.submission import SubmissionFacts, write_submission
from speedrun.tracks.load import Track
from speedrun.verify.judge import verify_submission
from speedrun.verify.verdict import Status, Verdict

HERE = Path(__file__).parent
EVALUATION = EvalConfig(context=64, stride=32, batch_windows=4)
TRACK = Track(
    name="cheats", version=1, summary="", train_seconds=60.0, eval_seconds=60.0,
    cap_bytes=400_000, corpus="none", recipe="none", hardware="any CPU",
)  # fmt: skip
_TEXT = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book naïve eye job word business
issue side kind head house service friend father power hour game
"""
WORDS = _TEXT.split()


def write_documents(
    num: int, seed: int, words: Sequence[str] = WORDS, num_own: int = 0
) -> list[tuple[str, str]]:
    """Texts of words that follow each other with some preference: learnable, and no two alike.

    Each has `num_own` names that it keeps repeating and that no other has.
    """
    dice = random.Random(seed)
    follows = random.Random(1)
    favourites = {word: follows.sample(words, 3) for word in words}
    documents = []
    for index in range(num):
        word, parts = dice.choice(words), []
        own = ["".join(dice.choices("abcdefghijklmnoprstuvwz", k=7)) for _ in range(num_own)]
        for _ in range(dice.randrange(60, 140)):
            word = dice.choice(favourites[word]) if dice.random() < 0.6 else dice.choice(words)
            if dice.random() < 0.02:  # a sign that no piece has, so that it becomes bytes
                parts.append(chr(0x4E00 + dice.randrange(400)))
            parts.append(word + dice.choice(("", "", "", "", ",", ".", ".\n")))
            if own and dice.random() < 0.3:
                parts.append(dice.choice(own))
        documents.append((f"doc{seed}-{index}", " ".join(parts)))
    return documents


@dataclass
class Court:
    """The text, and a way to hand in and to be judged."""

    folder: Path
    dataset: Dataset
    track: Track = TRACK

    def pair_counts(self) -> np.ndarray:
        """How often each token follows each other one, (V, V) float32."""
        counts = np.zeros((self.dataset.vocab_size,) * 2, np.float32)
        for shard in map(open_shard, self.dataset.train_shards):
            np.add.at(counts, (shard[:-1], shard[1:]), 1)
        return counts

    @property
    def val_tokens(self) -> np.ndarray:
        return np.asarray(self.dataset.val_tokens())

    def submit(
        self,
        source: str,
        arrays: dict[str, np.ndarray] | None = None,
        *,
        out: Path,
        claim: float | None = None,
        evaluation: EvalConfig = EVALUATION,
        script: str = "",
        codec: str = "zstd",
        **facts: Any,
    ) -> Path:
        """A complete submission; it claims what it scores in process, unless told.

        A `script` is handed in instead of what the source is packed to.
        """
        arrays = {"counts": self.pair_counts()} if arrays is None else arrays
        code, model = pack_predictor(
            source, arrays, vocab_size=self.dataset.vocab_size, evaluation=evaluation, codec=codec
        )
        code = script.encode() or code
        found = None
        if claim is None:
            module: dict[str, Any] = {}
            exec(compile(source, out.name, "exec"), module)
            with suppress(PredictorError):  # then a claim as good as any
                found = score(
                    module["load"](arrays), self.val_tokens,
                    num_bytes=self.dataset.val_raw_bytes, context=evaluation.context,
                    stride=evaluation.stride, batch_windows=evaluation.batch_windows,
                )  # fmt: skip
        ledger = Ledger(out.with_name(out.name + ".jsonl"))
        ledger.append(Phase(name="train", start_s=0.0, stop_s=12.5, on_budget=True))
        log = out.with_name(out.name + ".log")
        log.write_text("counted pairs of tokens\n")
        told: dict[str, Any] = {
            "name": "court/predictor", "seed": 1, "author": "Ada", "date": "2026-01-02",
            "val_bpb": found.bpb if found else claim or 1.0,
            "val_loss": found.nats_per_token if found else 1.0,
            "step_stop": 1, "wallclock_seconds": 12.5, "eval_time_seconds": 1.0,
            "model_params": sum(array.size for array in arrays.values()), "hardware": "any CPU",
            "pytorch_version": "", "data_fingerprint": self.dataset.fingerprint,
        }  # fmt: skip
        write_submission(
            out, weights_bytes=model, bundle=code, facts=SubmissionFacts(**told | facts),
            logs={"ledger.jsonl": ledger.path, "train.log": log}, track=self.track,
        )  # fmt: skip
        return out

    def judge(self, folder: Path, **options: Any) -> Verdict:
        options = {"level": "probe", "audit_seconds": 0.1} | options
        return verify_submission(folder, options.pop("track", self.track), self.dataset, **options)


def failed(verdict: Verdict) -> dict[str, str]:
    """Rules that failed, with what was said."""
    return {r.id: r.evidence for r in verdict.results if r.status is Status.FAIL}


def relist(folder: Path) -> None:
    """Write a manifest that agrees with the files, as a cheat would."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "files": files}))


def open_court(folder: Path, text: str = "words") -> Court:
    """A court over texts of `words`, over their `bytes`, over `names`: a large alphabet, or over
    words among names that each document has of its `own`.
    """
    words, num, held_out, num_own = WORDS, 80, 24, 4 if text == "own" else 0
    if text == "names":
        dice, num, held_out = random.Random(2), 120, 12
        parts = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
        words = sorted({"".join(dice.choices(parts, k=3)) for _ in range(4_000)})
    documents = write_documents(num, seed=3, words=words, num_own=num_own)
    texts, size = [text for _, text in documents], 512
    if text == "bytes":  # who has seen nothing but one sign and the space takes the rest as bytes
        texts, size, held_out = ["e e"], 262, 8
    elif text == "names":
        size = 4_200
    tokenizer = train_tokenizer(texts, size, folder / "tokenizer.model")
    documents += write_documents(held_out, seed=4, words=words, num_own=num_own)
    dataset = prepare_dataset(
        documents,
        tokenizer,
        folder / "data",
        name="court",
        is_validation=lambda name: name.startswith("doc4-"),
    )
    return Court(folder, dataset)


@pytest.fixture(scope="session")
def court(tmp_path_factory: pytest.TempPathFactory) -> Court:
    return open_court(tmp_path_factory.mktemp("court"))


@pytest.fixture(scope="session")
def courts(court: Court, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Court]:
    """Opens a court over another text; see `open_court`."""
    return lambda text: (
        court if text == "words" else open_court(tmp_path_factory.mktemp(text), text)
    )


def read_predictor(name: str) -> str:
    """Source of a predictor; cheats build on the honest one, which then travels with them."""
    base = (HERE / "honest" / "pair_counts.py").read_text(encoding="utf-8")
    source = (HERE / f"{name}.py").read_text(encoding="utf-8")
    return source.replace("from honest.pair_counts import Pairs\n", base.partition("def load")[0])
