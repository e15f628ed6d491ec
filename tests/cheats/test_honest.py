"""Protects honest people: predictors of many kinds, each judged, none of them suspected.

Every file in `honest/` is a predictor of one kind. Where one imports another, they are handed in as
one file. Weights are trained here, in seconds, on the training text.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speedrun.bpb import windows
from speedrun.config import EvalConfig
from speedrun.data.shards import open_shard
from speedrun.verify.verdict import Status, Verdict

HONEST = Path(__file__).parent / "honest"
STEPS = 100

Arrays = dict[str, np.ndarray]


def asked(context: int, stride: int, batch_windows: int) -> EvalConfig:
    return EvalConfig(context=context, stride=stride, batch_windows=batch_windows)


EVALUATION = asked(64, 32, 4)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One honest submission: which predictor, with which arrays, on which text, asked how."""

    predictor: str
    arrays: str = "pairs"
    text: str = "words"
    evaluation: EvalConfig = EVALUATION
    kind: str = "fixed"
    script: bool = False
    """It speaks the protocol itself; its scores are those of `pair_counts`."""
    program: str = ""
    """What must be installed."""
    slow: bool = False
    undecided: str = ""
    """What the judge says of one that it can neither pass nor fail."""


COUNTS = {"predictor": "pair_counts", "slow": True}
RECURRENT = {"predictor": "rnn", "arrays": "recurrent", "slow": True}
NETWORK = {"arrays": "transformer", "slow": True}
SCRIPT = {"arrays": "small pairs", "script": True}
VARIANTS = {
    "pair counts": Variant(**COUNTS),
    "counts of three": Variant(predictor="triple_counts", arrays="triples"),
    "n-gram and network": Variant(predictor="neural_mixture", arrays="feed-forward", slow=True),
    "bytes": Variant(
        predictor="byte_contexts", arrays="bytes", text="bytes", evaluation=asked(256, 128, 4)
    ),
    "large alphabet": Variant(
        predictor="large_alphabet", arrays="sparse pairs", text="names", slow=True
    ),
    "padded alphabet": Variant(predictor="padded_alphabet", slow=True),
    "copying": Variant(predictor="copying", slow=True),
    # Copying makes names cheap that no training text has: no sign of having seen them before.
    "copying names": Variant(predictor="copying", text="own", evaluation=asked(256, 128, 4)),
    "long convolution": Variant(predictor="long_convolution", slow=True),
    "recurrent": Variant(**RECURRENT),
    "chunks": Variant(evaluation=asked(64, 64, 4), **RECURRENT),
    "one window a call": Variant(evaluation=asked(64, 48, 1), **RECURRENT),
    "all windows at once": Variant(evaluation=asked(32, 16, 1024), **RECURRENT),
    "last window of one token": Variant(evaluation=asked(93, 40, 3), **RECURRENT),
    "stride of one": Variant(predictor="copying", evaluation=asked(16, 1, 64), slow=True),
    "text shorter than a window": Variant(evaluation=asked(8192, 64, 4), **COUNTS),
    "transformer": Variant(predictor="transformer", arrays="transformer"),
    "bf16": Variant(predictor="bf16", **NETWORK),
    "bf16 as on GPUs": Variant(predictor="bf16_split", **NETWORK),
    "bf16 far from zero": Variant(
        predictor="bf16_offset", undecided="in steps of 0.25: too coarse to say", **NETWORK
    ),
    "experts": Variant(predictor="experts", arrays="experts", slow=True),
    "int8": Variant(predictor="int8", arrays="int8 transformer", slow=True),
    "dropout off": Variant(predictor="dropout", **NETWORK),
    "isolated documents": Variant(predictor="isolated_documents", **NETWORK),
    "test-time training": Variant(predictor="score_first_training", kind="adaptive", **NETWORK),
    "online counts": Variant(predictor="online_counts", kind="adaptive"),
    "recency cache": Variant(predictor="recency_cache", kind="adaptive", slow=True),
    "carried state": Variant(
        predictor="carried_state", arrays="recurrent", kind="adaptive", slow=True
    ),
    "plain script": Variant(predictor="plain_script", **SCRIPT),
    "another language": Variant(
        predictor="other_language", program="/usr/bin/perl", slow=True, **SCRIPT
    ),
}


def read_source(name: str) -> str:
    """A predictor's file; those that it imports from beside it come in their place, each once."""
    included = {name}

    def inline(match: re.Match[str]) -> str:
        if not (HONEST / f"{match[1]}.py").exists():
            return match[0]
        return "" if match[1] in included else read(match[1])

    def read(part: str) -> str:
        included.add(part)
        text = (HONEST / f"{part}.py").read_text(encoding="utf-8")
        return re.sub(r"^from (\w+) import .*$", inline, text, flags=re.MULTILINE)

    return read(name)


@dataclass
class School:
    """Courts by the text that they judge on, and arrays made of their training text, each once."""

    open_court: Callable[[str], Any]
    _courts: dict[str, Any] = field(default_factory=dict)
    _arrays: dict[str, Arrays] = field(default_factory=dict)

    def court(self, text: str) -> Any:
        if text not in self._courts:
            self._courts[text] = self.open_court(text)
        return self._courts[text]

    def arrays(self, name: str, text: str) -> Arrays:
        if name not in self._arrays:
            self._arrays[name] = ARRAYS[name](self, self.court(text))
        # Copies: a predictor may go on counting in what it was given.
        return {part: array.copy() for part, array in self._arrays[name].items()}

    def submit(self, name: str, out: Path) -> Path:
        """Hand a variant in."""
        variant = VARIANTS[name]
        court, arrays = self.court(variant.text), self.arrays(variant.arrays, variant.text)
        source, options = read_source(variant.predictor), {}
        if variant.script:  # it reads the bytes as they are, and scores as these counts do
            source, options = read_source("pair_counts"), {"script": source, "codec": "raw"}
        evaluation, kind, threads = variant.evaluation, variant.kind, torch.get_num_threads()
        try:
            return court.submit(
                source, arrays, out=out, evaluation=evaluation, kind=kind, **options
            )
        finally:  # predictors set them as they like
            torch.set_num_threads(threads)

    def judge(self, name: str, folder: Path, **options: Any) -> Verdict:
        court = self.court(VARIANTS[name].text)
        # Seconds on a busy machine are not what is tested here.
        track = dataclasses.replace(court.track, eval_seconds=600.0)
        return court.judge(folder, track=track, **options)


def read_training(court: Any) -> np.ndarray:
    shards = court.dataset.train_shards
    return np.concatenate([open_shard(path) for path in shards]).astype(np.int64)


def count_pairs(school: School, court: Any) -> Arrays:
    return {"counts": court.pair_counts()}


def count_small_pairs(school: School, court: Any) -> Arrays:
    return {"counts": court.pair_counts().astype(np.uint8)}


def count_triples(school: School, court: Any) -> Arrays:
    size, tokens = court.dataset.vocab_size, read_training(court)
    codes = (tokens[:-2] * size + tokens[1:-1]) * size + tokens[2:]
    triples, counts = np.unique(codes, return_counts=True)
    return {
        "pairs": court.pair_counts().astype(np.uint16),
        "triples": triples,
        "counts": counts.astype(np.uint16),
    }


def count_sparse_pairs(school: School, court: Any) -> Arrays:
    size, tokens = court.dataset.vocab_size, read_training(court)
    codes, counts = np.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    starts = np.searchsorted(codes // size, np.arange(size + 1))
    return {
        "counts": counts.astype(np.uint16),
        "next": (codes % size).astype(np.uint16),
        "starts": starts.astype(np.int32),
    }


def count_bytes(school: School, court: Any) -> Arrays:
    module, tokens = load_module("byte_contexts"), read_training(court)
    tables = np.zeros((4, module.SLOTS, court.dataset.vocab_size), np.uint8)
    for order, table in enumerate(tables, start=1):
        for slot, token in zip(module.slots(tokens[None], order)[0], tokens[1:], strict=False):
            table[slot, token] += table[slot, token] < 255
    return {"tables": tables}


def train_transformer(school: School, court: Any) -> Arrays:
    with seeded():
        network = load_module("transformer").Network(court.dataset.vocab_size, 64, 48)
        return fit(network, lambda ids: network(ids, torch.ones_like(ids, dtype=bool)), court)


def train_experts(school: School, court: Any) -> Arrays:
    with seeded():
        network = load_module("experts").Sparse(court.dataset.vocab_size, 64, 48)
        return fit(network, lambda ids: network(ids, torch.ones_like(ids, dtype=bool)), court)


def round_transformer(school: School, court: Any) -> Arrays:
    """Matrices of linear layers as 8-bit codes with a scale per row."""
    arrays = school.arrays("transformer", "words")
    for name in [name for name in arrays if re.search(r"(qkv|out|up|down|head).weight", name)]:
        scales = np.abs(arrays[name].astype(np.float32)).max(axis=1) / 127
        arrays[name] = np.rint(arrays[name] / scales[:, None]).astype(np.int8)
        arrays[name.replace("weight", "scales")] = scales
    return arrays


def train_recurrent(school: School, court: Any) -> Arrays:
    size = court.dataset.vocab_size
    with seeded():
        network = nn.ModuleDict(
            {
                "embedding": nn.Embedding(size, 32),
                "gates": nn.GRU(32, 64, batch_first=True),
                "output": nn.Linear(64, size),
            }
        )
        arrays = fit(
            network,
            lambda ids: network.output(network.gates(network.embedding(ids))[0]).flatten(0, 1),
            court,
        )
    names = {
        "embedding.weight": "embedding",
        "gates.weight_ih_l0": "input",
        "gates.bias_ih_l0": "input_bias",
        "gates.weight_hh_l0": "state",
        "gates.bias_hh_l0": "state_bias",
        "output.weight": "output",
        "output.bias": "output_bias",
    }
    return {names[name]: array for name, array in arrays.items()}


def train_feed_forward(school: School, court: Any) -> Arrays:
    size = court.dataset.vocab_size
    with seeded():
        network = nn.ModuleDict(
            {
                "embedding": nn.Embedding(size, 24),
                "hidden": nn.Linear(72, 64),
                "output": nn.Linear(64, size),
            }
        )

        def forward(ids: torch.Tensor) -> torch.Tensor:
            last = F.pad(ids, (2, 0)).unfold(1, 3, 1)
            hidden = network.hidden(network.embedding(last).flatten(2))
            return network.output(torch.tanh(hidden)).flatten(0, 1)

        arrays = fit(network, forward, court)
    renamed = {
        name.replace(".weight", "").replace(".bias", "_bias"): array
        for name, array in arrays.items()
    }
    return renamed | {"pairs": court.pair_counts().astype(np.uint16)}


ARRAYS: dict[str, Callable[[School, Any], Arrays]] = {
    "pairs": count_pairs,
    "small pairs": count_small_pairs,
    "sparse pairs": count_sparse_pairs,
    "triples": count_triples,
    "bytes": count_bytes,
    "feed-forward": train_feed_forward,
    "recurrent": train_recurrent,
    "transformer": train_transformer,
    "experts": train_experts,
    "int8 transformer": round_transformer,
}


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def fit(network: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], court: Any) -> Arrays:
    """Train for a few seconds; `forward` maps ids (B, T) to logits (B * T, V)."""
    tokens = torch.from_numpy(read_training(court))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - 65, (8, 1))
        batch = tokens[starts + torch.arange(65)]
        loss = F.cross_entropy(forward(batch[:, :-1]), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: part.half().numpy() for name, part in network.state_dict().items()}


def load_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(read_source(name), name, "exec"), module.__dict__)
    return module


def suspicions(verdict: Verdict) -> dict[str, str]:
    """Results other than PASS, with what was said."""
    return {
        result.id: f"{result.status}: {result.measured}; limit {result.limit}; {result.evidence}"
        for result in verdict.results
        if result.status is not Status.PASS
    }


@pytest.fixture(scope="session")
def school(courts: Callable[[str], Any]) -> School:
    return School(courts)


def marked(name: str) -> Any:
    variant = VARIANTS[name]
    is_missing = bool(variant.program) and not Path(variant.program).exists()
    marks = [pytest.mark.skipif(is_missing, reason=f"{variant.program} is not installed")]
    if variant.slow:
        marks.append(pytest.mark.slow)
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in VARIANTS])
def test_an_honest_predictor_is_not_suspected(name: str, school: School, tmp_path: Path) -> None:
    verdict = school.judge(name, school.submit(name, tmp_path / "submission"), probe_seed=1)
    found = suspicions(verdict)
    if VARIANTS[name].undecided:
        assert found
        assert all(said.startswith("UNDECIDED") for said in found.values()), found
        assert any(VARIANTS[name].undecided in said for said in found.values()), found
    else:
        assert not found, found
    assert verdict.measurement.kind == VARIANTS[name].kind


def test_every_predictor_is_judged() -> None:
    judged = {variant.predictor for variant in VARIANTS.values()}
    assert judged == {path.stem for path in HONEST.glob("*.py")}


def test_windows_are_cut_as_their_variants_say(court: Any) -> None:
    def cut(name: str) -> np.ndarray:
        evaluation = VARIANTS[name].evaluation
        return windows(len(court.val_tokens), evaluation.context, evaluation.stride)

    start, stop, scored = cut("last window of one token")[-1]
    assert stop - start - scored == 1
    assert len(cut("text shorter than a window")) == 1
    at_once = VARIANTS["all windows at once"].evaluation.batch_windows
    assert len(cut("all windows at once")) < at_once
