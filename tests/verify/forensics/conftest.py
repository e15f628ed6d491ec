"""Builds records that are right in every figure, in each dialect, and lets tests spoil them."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from speedrun.verify.forensics.audit import audit
from speedrun.verify.forensics.findings import Finding, Severity

SPLITS = {
    "sp1024": (62_021_632, 151_080_169),
    "sp4096": (45_508_608, 151_074_053),
    "sp8192": (40_540_160, 151_078_222),
}
DIALECTS = ("colon", "slash", "ternary", "plain")
CAP = 16_000_000


@dataclass(kw_only=True)
class Run:
    """One training run, in exact numbers; `text` rounds them as a script would."""

    seed: int
    bpb: float
    """Of packed weights, sliding windows."""
    step_ms: float = 85.0
    train_ms: float = 599_900.0
    code: int = 60_000
    model: int = 15_700_000
    eval_ms: float = 70_000.0
    split: str = "sp1024"
    batch: int = 524_288
    params: int = 17_059_912
    byte_factor: float = 1.0
    """Bytes that the script counts over bytes of text."""

    @property
    def steps(self) -> int:
        return int(self.train_ms / self.step_ms)

    @property
    def total(self) -> int:
        return self.code + self.model

    def nats(self, bpb: float) -> float:
        tokens, num_bytes = SPLITS[self.split]
        return bpb * math.log(2) * num_bytes * self.byte_factor / tokens

    def losses(self) -> dict[int, float]:
        dice = random.Random(self.seed)
        return {step: 2.5 + dice.uniform(-0.3, 0.3) for step in range(500, self.steps, 500)}

    def time_ms(self, step: int) -> float:
        return self.train_ms if step == self.steps else step * self.train_ms / self.steps

    def text(self, dialect: str) -> str:
        return {"colon": _colon, "slash": _slash, "ternary": _ternary, "plain": _plain}[dialect](
            self
        )


def _scores(run: Run, bpb: float, digits: int = 8) -> str:
    return f"val_loss:{run.nats(bpb):.{digits}f} val_bpb:{bpb:.{digits}f}"


def _steps(run: Run, write: Callable[[int, float, float], str]) -> list[str]:
    return [write(step, loss, run.time_ms(step)) for step, loss in run.losses().items()]


def _colon(run: Run) -> str:
    pre = run.bpb + 0.025
    average = run.train_ms / run.steps
    lines = [
        "import math",
        'log0(f"step:{step}/{args.iterations} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f}")',
        f"val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./{run.split}.model",
        f"train_loader:dataset:fineweb10B_{run.split} train_shards:80",
        f"val_loader:shards pattern=./fineweb_val_*.bin tokens:{SPLITS[run.split][0]}",
        f"model_params:{run.params}",
        "world_size:8 grad_accum_steps:1",
        f"train_batch_tokens:{run.batch} train_seq_len:1024 iterations:20000",
        f"seed:{run.seed}",
        "warmup_step:1/20",
        *_steps(
            run,
            lambda step, loss, ms: (
                f"step:{step}/20000 train_loss:{loss:.4f} train_time:{ms:.0f}ms "
                f"step_avg:{ms / step:.2f}ms"
            ),
        ),
        f"step:{run.steps}/20000 {_scores(run, pre, 4)} train_time:{run.train_ms:.0f}ms "
        f"step_avg:{average:.2f}ms",
        f"stopping_early: wallclock_cap train_time:{run.train_ms:.0f}ms step:{run.steps}/20000",
        "peak memory allocated: 10184 MiB reserved: 10200 MiB",
        "Serialized model: 67224983 bytes",
        f"Code size: {run.code} bytes",
        f"Total submission size: {67224983 + run.code} bytes",
        f"Serialized model int8+zlib: {run.model} bytes (payload:17178912 raw_torch:17224025)",
        f"Total submission size int8+zlib: {run.total} bytes",
        f"final_int6_roundtrip {_scores(run, run.bpb + 0.02, 4)} eval_time:5000ms",
        f"final_int6_sliding_window {_scores(run, run.bpb, 4)} stride:64 "
        f"eval_time:{run.eval_ms:.0f}ms",
        f"final_int6_sliding_window_exact {_scores(run, run.bpb)}",
    ]
    return "\n".join(lines) + "\n"


def _slash(run: Run) -> str:
    lines = [
        "Hyperparameters:",
        f"  datasets_dir: ./data/datasets/fineweb10B_{run.split}",
        "  eval_seq_len: 2048",
        "  gptq_reserve_seconds: 12.0",
        "  iterations: 20000",
        f"  seed: {run.seed}",
        f"  tokenizer_path: ./data/tokenizers/fineweb_{run.split[2:]}_bpe.model",
        f"  train_batch_tokens: {run.batch}",
        "  train_files: ./data/fineweb_train_*.bin",
        "  val_batch_tokens: 524288",
        "  val_doc_fraction: 1.0",
        "  world_size: 8",
        f"val_tokens: {SPLITS[run.split][0]}",
        f"model_params:{run.params}",
        "warmup_step: 1/20",
        *_steps(
            run,
            lambda step, loss, ms: (
                f"{step}/20000 train_loss: {loss:.4f} train_time: {ms / 60_000:.1f}m "
                f"tok/s: {1000 * step * run.batch / ms:.0f}"
            ),
        ),
        f"{run.steps}/20000 val_loss: {run.nats(run.bpb + 0.02):.4f} val_bpb: {run.bpb + 0.02:.4f}",
        f"stopping_early: wallclock_cap train_time: {run.train_ms:.0f}ms step: {run.steps}/20000",
        f"pre-quantization post-ema {_scores(run, run.bpb + 0.01)} eval_time:6000ms",
        f"Code size (uncompressed): {5 * run.code} bytes",
        f"Code size (compressed): {run.code} bytes",
        "GPTQ:collecting Hessians from calibration data...",
        "GPTQ:collected 67 Hessians in 0.1s",
        f"Serialized model quantized+brotli: {run.model} bytes",
        f"Total submission size quantized+brotli: {run.total} bytes",
        f"quantized {_scores(run, run.bpb + 0.015)} eval_time:7000ms",
        "ttt_lora:warming up compile (random tokens, no val data)",
        "ttt_phased: total_docs:50000 prefix_docs:2000 suffix_docs:48000 num_phases:3",
        "ttp: b782/782 bl:2.3149 bb:1.0382 rl:2.2954 rb:1.0428 dl:858-860 gd:1",
        f"quantized_ttt_phased {_scores(run, run.bpb)} eval_time:{run.eval_ms:.0f}ms",
        f"total_eval_time:{run.eval_ms / 1000:.1f}s",
    ]
    return "\n".join(lines) + "\n"


def _ternary(run: Run) -> str:
    lines = [
        "--- Hyperparameters ---",
        f"data_path=./data/datasets/fineweb10B_{run.split} iterations=20000 seed={run.seed} "
        f"train_batch_tokens={run.batch} train_seq_len=1024 val_loss_every=0",
        f"params:{run.params} L:10 d:768 h:8 kv:4 ws:8 ga:1 s:{run.seed}",
        "warmup:1/5",
        *_steps(
            run,
            lambda step, loss, ms: (
                f"step:{step}/20000 loss:{loss:.4f} t:{ms:.0f}ms avg:{ms / step:.1f}ms"
            ),
        ),
        f"step:{run.steps}/20000 {_scores(run, run.bpb + 0.02, 4)} "
        f"train_time:{run.train_ms:.0f}ms zero_frac:0.336",
        f"stopping_early: wallclock_cap train_time:{run.train_ms:.0f}ms step:{run.steps}/20000",
        f"artifact:15.92MB ternary:64880640(14239486B) fp:2513744(2537376B) code:{run.code}",
        f"budget:{run.total}/16000000 (15.99/16.00MB) FITS",
        f"final_ternary_roundtrip {_scores(run, run.bpb + 0.02, 4)}",
        f"final_sliding {_scores(run, run.bpb, 4)} (stride=16, T=0.90) "
        f"eval_time:{run.eval_ms:.0f}ms",
    ]
    return "\n".join(lines) + "\n"


def _plain(run: Run) -> str:
    lines = [
        f"seed:{run.seed} train_batch_tokens:{run.batch}",
        *_steps(
            run,
            lambda step, loss, ms: (
                f"step:{step}/1000000 train_loss:{loss:.4f} train_time:{ms:.0f}ms "
                f"step_avg:{ms / step:.2f}ms"
            ),
        ),
        f"stopping_early: wallclock_cap train_time:{run.train_ms:.0f}ms step:{run.steps}/1000000",
        f"Serialized model: {run.model} bytes",
        f"Code size: {run.code} bytes",
        f"Total submission size: {run.total} bytes",
        f"final_sliding_window_exact {_scores(run, run.bpb)} stride:64 "
        f"eval_time:{run.eval_ms:.0f}ms",
    ]
    return "\n".join(lines) + "\n"


@dataclass
class Record:
    """A record's folder on its way to disk: runs, the claim about them, and other files."""

    folder: Path
    dialect: str = "colon"
    runs: list[Run] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def fill(self) -> Record:
        """Logs and claims that are right about the runs."""
        digits = 4 if self.dialect == "ternary" else 8
        self.logs = {f"train_seed{run.seed}.log": run.text(self.dialect) for run in self.runs}
        scores = [round(run.bpb, digits) for run in self.runs]
        self.claims = {
            "author": "Ada",
            "date": "2026-04-01",
            "track": "10min_16mb",
            "val_loss": round(statistics.fmean(run.nats(run.bpb) for run in self.runs), 4),
            "val_bpb": round(statistics.fmean(scores), 5),
            "val_bpb_std": round(statistics.stdev(scores), 5) if len(scores) > 1 else None,
            "seeds": [run.seed for run in self.runs],
            "seed_results": {
                str(run.seed): {
                    "val_loss": round(run.nats(run.bpb), digits),
                    "val_bpb": score,
                    "artifact_bytes": run.total,
                    "steps": run.steps,
                    "train_time_s": round(run.train_ms / 1000, 3),
                    "eval_time_s": round(run.eval_ms / 1000, 1),
                }
                for run, score in zip(self.runs, scores, strict=True)
            },
            "bytes_total": max(run.total for run in self.runs),
            "bytes_code": self.runs[0].code,
            "hardware": "8xH100 80GB SXM",
            "compliance": {"train_under_600s": True, "artifact_under_16mb": True},
        }
        return self

    def edit(self, pattern: str, new: str, *, log: str = "", count: int = 1) -> None:
        """Change lines of one log, the first one unless named."""
        name = log or next(iter(self.logs))
        changed, done = re.subn(pattern, new, self.logs[name], count=count, flags=re.M)
        assert done, f"{pattern!r} is not in {name}"
        self.logs[name] = changed

    def write(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.logs.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text, encoding="utf-8")
        if self.claims:
            claims = json.dumps(self.claims, indent=2)
            (self.folder / "submission.json").write_text(claims, encoding="utf-8")
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)
        return self.folder

    def findings(self) -> list[Finding]:
        (report,) = audit(self.write()).reports
        return list(report.findings)

    def ids(self, *severities: Severity) -> set[str]:
        return {f.id for f in self.findings() if not severities or f.severity in severities}


@pytest.fixture(scope="session")
def new_run() -> type[Run]:
    """The class of runs, for tests that draw their own."""
    return Run


@pytest.fixture(scope="session")
def new_record() -> type[Record]:
    """The class of records, for tests that draw their own."""
    return Record


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Record]:
    """A record of three seeds that is right in every figure."""

    def make(dialect: str = "colon", **changes: Any) -> Record:
        folder = tmp_path / "track_10min_16mb" / "2026-04-01_Idea"
        runs = [
            Run(seed=seed, bpb=bpb, **changes)
            for seed, bpb in ((42, 1.1234567), (314, 1.1241234), (999, 1.1249876))
        ]
        return Record(folder, dialect, runs).fill()

    return make


@dataclass(frozen=True)
class Outcome:
    """What a call of the program gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def verify(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`speedrun verify` with words, in this process."""
    from speedrun.cli import main

    def verify(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["speedrun", "verify", *map(str, words)])
        monkeypatch.setattr(main, "exit_cleanly", lambda: None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        return Outcome(int(left.value.code or 0), *capsys.readouterr())

    return verify
