"""Records to draw: as many as are asked for, different in all that a page shows."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path

from speedrun.clock import Ledger, Phase
from speedrun.recipes.load import load_recipe, write_recipe
from speedrun.records.record import Record, SeedResult, Standing, Withdrawal, to_json

TRACK = "golf-10min-16mb"
IDEAS = ("xsa", "muon", "bigrams", "smear", "loop", "gptq", "long-context", "ema")
AUTHORS = ("Ada Byron", "Lin Wei", "Søren Ærø", "M. Okafor", "Priya", "a-long-name-without-spaces")
SUMMARIES = (
    "Exclusive attention on the last four layers",
    "Hashed bigrams of 10,240 buckets, and a longer warm-down",
    "Two lanes from layer seven on",
)


def make_records(count: int, *, seed: int = 1) -> list[Record]:
    """A ladder that comes down over half a year, with results beside it and one withdrawn."""
    dice = random.Random(seed)
    first = datetime.date(2026, 3, 18)
    records: list[Record] = []
    best: dict[Standing, Record | None] = dict.fromkeys(Standing)
    for number in range(count):
        share = number / max(count - 1, 1)
        status = dice.choice([Standing.PUBLISHED, Standing.PUBLISHED, *Standing])
        level = 1.06 + 0.17 * (1 - share) ** 2 + (0.02 if status is Standing.RECORD else 0)
        mean = level + 0.03 * dice.random() ** 3
        parent = best[status]
        seeds = tuple(
            SeedResult(
                seed=42 + index,
                val_bpb=mean + 0.0006 * (index - 1),
                val_loss=1.69 * mean,
                num_bytes=dice.randint(12_000_000, 15_999_000),
                train_seconds=600 - 40 * dice.random() ** 4,
                num_steps=dice.randint(5_000, 9_000),
                manifest_sha256="0" * 64,
            )
            for index in range(3)
        )
        record = Record(
            slug=f"{dice.choice(IDEAS)}-{number}",
            date=(first + datetime.timedelta(days=int(180 * share))).isoformat(),
            author=dice.choice(AUTHORS),
            summary=dice.choice(SUMMARIES),
            track=TRACK,
            track_version=1,
            data_fingerprint="f" * 64,
            num_tokens=62_021_632,
            num_bytes=151_080_891,
            hardware="8 x H100 SXM",
            sandboxed=True,
            seeds=seeds,
            status=status,
            based_on=parent.name if parent and number % 2 else "",
            level="" if status is Standing.PUBLISHED else "probe",
            withdrawn=Withdrawal(date="2026-09-01", reason="trained on the validation text")
            if number == count // 2
            else None,
        )
        if parent is None or record.val_bpb.mean < parent.val_bpb.mean:
            best[status] = record
        records.append(record)
    return records


def write_records(root: Path, records: list[Record], *, with_evidence: bool = False) -> None:
    """Folders under `root`, bare or with all that a verified record has beside it."""
    for record in records:
        folder = root / record.track / record.name
        folder.mkdir(parents=True)
        (folder / "record.json").write_bytes(to_json(record))
        if with_evidence and record.status is not Standing.PUBLISHED:
            write_evidence(folder, record)


def write_evidence(folder: Path, record: Record) -> None:
    """Logs, ledgers, verdicts and a recipe, as filing leaves them."""
    dice = random.Random(record.name)
    for seed in record.seeds:
        lines = ["model_params:26829913"]
        for step in [*range(1, 11), *range(50, 6_001, 50)]:
            loss = 1.9 + 5 * (1 + step / 40) ** -0.9 + 0.05 * dice.gauss(0, 1)
            lines.append(
                f"step:{step}/20000 train_loss:{loss:.4f} train_time:{100 * step}ms "
                "step_avg:100.00ms"
            )
        size = seed.num_bytes or 0
        lines += [
            f"Serialized model: {size - 60_000} bytes",
            "Code size: 60000 bytes",
            f"Total submission size: {size} bytes",
        ]
        (folder / f"seed{seed.seed}.log").write_text("\n".join(lines) + "\n")
        ledger = Ledger(folder / f"seed{seed.seed}.ledger.jsonl")
        end_s = 0.0
        for name, seconds in (("warm-up", 90.0), ("train", 595.0), ("pack", 40.0)):
            on_budget = name == "train"
            ledger.append(
                Phase(name=name, start_s=end_s, stop_s=end_s + seconds, on_budget=on_budget)
            )
            end_s += seconds
    rules = [
        {"id": "size", "status": "PASS", "condition": "V9", "measured": "15,990,112 bytes"}
        | {"limit": "16,000,000 bytes", "evidence": "code 60,000 + model 15,930,112", "fix": ""},
        {"id": "prefixes", "status": "UNDECIDED", "measured": "", "limit": "", "evidence": ""}
        | {"fix": "give it more time"},
    ]
    verdicts = {
        str(seed.seed): {"status": "UNDECIDED", "level": "probe", "isolation": "bubblewrap"}
        | {"results": rules, "measurement": {"bpb": seed.val_bpb, "num_tokens": 62_021_632}}
        for seed in record.seeds
    }
    (folder / "verdict.json").write_text(json.dumps(verdicts))
    names = ("golf/baseline", "golf/xsa4-ema", "golf/partial-rope", "golf/pr649")
    write_recipe(folder / "recipe.toml", load_recipe(dice.choice(names)))
