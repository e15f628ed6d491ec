"""Protects against faked records: working cheats in logs and claims, each caught by its name."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from speedrun.verify.forensics.audit import audit
from speedrun.verify.forensics.findings import Severity

WEIGHTY = (Severity.BROKEN, Severity.CONTRADICTION)


def _faked_times(record: Any) -> None:
    """Fifteen minutes of training, with every time in the log scaled down to ten."""
    for name, text in record.logs.items():
        record.logs[name] = re.sub(
            r"(?<=train_time:)\d+", lambda match: str(int(int(match[0]) * 0.66)), text
        )
    for entry in record.claims["seed_results"].values():
        entry["train_time_s"] = round(int(599_900 * 0.66) / 1000, 3)


def _faked_stop(record: Any) -> None:
    """Trained on for as long again; only the last two lines say otherwise."""
    for name, text in record.logs.items():
        record.logs[name] = re.sub(
            r"(?<=train_time: )599900ms step: \d+", "599900ms step: 14000", text
        ).replace("7057/20000 val_loss", "14000/20000 val_loss")
    for entry in record.claims["seed_results"].values():
        entry["steps"] = 14_000


def _best_seed(record: Any) -> None:
    """The luckiest of three seeds is the result."""
    best = min(record.runs, key=lambda run: run.bpb)
    record.claims |= {"val_bpb": best.bpb, "val_loss": round(best.nats(best.bpb), 8)}
    for key in ("seeds", "seed_results", "val_bpb_std"):
        del record.claims[key]


def _one_byte_over(record: Any) -> None:
    """16,000,001 bytes, honestly added up."""
    record.runs = [dataclasses.replace(r, model=15_940_001, code=60_000) for r in record.runs]
    record.fill()


def _copied_log(record: Any) -> None:
    """A third seed that was never run: a copy of the second under a new name."""
    record.logs["train_seed999.log"] = record.logs["train_seed314.log"]
    record.claims["seed_results"]["999"] = record.claims["seed_results"]["314"]


def _copied_log_with_another_seed(record: Any) -> None:
    """The same, with the seed inside and the last digits of the result changed too."""
    text = record.logs["train_seed314.log"].replace("seed:314", "seed:999")
    record.logs["train_seed999.log"] = text.replace("val_bpb:1.12412340", "val_bpb:1.12422340")


def _spaces_counted_twice(record: Any) -> None:
    """The byte table holds the space and the evaluation adds it again: one sixth off the score."""
    factor = 1.1671
    record.runs = [
        dataclasses.replace(run, bpb=run.bpb / factor, byte_factor=factor) for run in record.runs
    ]
    record.fill()


def _byte_pieces_as_three(record: Any) -> None:
    """Byte tokens decoded one by one to a replacement character of three bytes."""
    factor = 157_319_833 / 151_073_604
    record.runs = [
        dataclasses.replace(run, bpb=run.bpb / factor, byte_factor=factor) for run in record.runs
    ]
    record.fill()


def _part_of_the_split(record: Any) -> None:
    """Only the easy half of the validation tokens is scored."""
    for name, text in record.logs.items():
        record.logs[name] = text.replace("tokens:62021632", "tokens:31010816")


def _score_of_the_unpacked_weights(record: Any) -> None:
    """The scores are those of the weights before quantisation."""
    for run in record.runs:
        unpacked = round(run.bpb + 0.025, 4)
        record.claims["seed_results"][str(run.seed)] |= {
            "val_bpb": unpacked,
            "val_loss": round(run.nats(run.bpb + 0.025), 4),
        }
    record.claims |= {"val_bpb": 1.1492, "val_loss": round(record.runs[0].nats(1.1492), 3)}
    record.claims["val_bpb_std"] = 0.0008


def _score_of_another_artifact(record: Any) -> None:
    """A better number than any log has."""
    for entry in record.claims["seed_results"].values():
        entry["val_bpb"] = round(entry["val_bpb"] - 0.01, 8)
        entry["val_loss"] = round(
            entry["val_loss"] * entry["val_bpb"] / (entry["val_bpb"] + 0.01), 8
        )
    record.claims["val_bpb"] = round(record.claims["val_bpb"] - 0.01, 5)
    record.claims["val_loss"] = round(record.claims["val_loss"] - 0.0169, 4)


def _best_three_of_five(record: Any) -> None:
    """Five seeds were run; the two worst are in the folder, not in the result."""
    for seed, bpb in ((5, 1.1262), (6, 1.1269)):
        run = dataclasses.replace(record.runs[0], seed=seed, bpb=bpb)
        record.logs[f"train_seed{seed}.log"] = run.text(record.dialect)


def _hidden_calibration(record: Any) -> None:
    """Twelve more seconds of training data, read after the clock stopped."""
    for name, text in record.logs.items():
        record.logs[name] = text.replace("Hessians in 0.1s", "Hessians in 12.0s")


def _impossible_speed(record: Any) -> None:
    """A billion parameters trained at the speed of a small model."""
    for name, text in record.logs.items():
        record.logs[name] = re.sub(r"model_params:\d+", "model_params:3000000000", text)


CHEATS = {
    "step-times": ("colon", _faked_times),
    "throughput": ("slash", _faked_stop),
    "best-seed": ("colon", _best_seed),
    "size": ("colon", _one_byte_over),
    "copied-log": ("colon", _copied_log),
    "same-run": ("colon", _copied_log_with_another_seed),
    "byte-count": ("colon", _spaces_counted_twice),
    "byte-count-of-pieces": ("slash", _byte_pieces_as_three),
    "validation-split": ("colon", _part_of_the_split),
    "unpacked-score": ("colon", _score_of_the_unpacked_weights),
    "claim-not-in-logs": ("slash", _score_of_another_artifact),
    "best-of-runs": ("colon", _best_three_of_five),
    "calibration-time": ("slash", _hidden_calibration),
    "speed": ("slash", _impossible_speed),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_faked_record_is_caught_by_name(make, name):
    dialect, cheat = CHEATS[name]
    record = make(dialect)
    assert record.findings() == []
    cheat(record)
    assert name.removesuffix("-of-pieces") in record.ids(*WEIGHTY)
    assert audit(record.folder).exit_code == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("byte-count", "the leading space counted twice"),
        ("byte-count-of-pieces", "three bytes each"),
    ],
)
def test_a_known_byte_bug_is_named(make, name, what):
    dialect, cheat = CHEATS[name]
    record = make(dialect)
    cheat(record)
    found = [f for f in record.findings() if f.id == "byte-count"]
    assert found and all(what in finding.sentence for finding in found)
