"""How often does the judge suspect honest predictors? Judges each of tests/cheats/honest again.

    python tools/check_false_alarms.py [--repetitions 20] [--variant "int8"] [--out FILE]

Every repetition starts fresh processes and draws other probes. Prints a table in Markdown: false
alarms, and for each probe the largest change of one target's nats, as median and maximum over the
repetitions. With --out, each verdict is also added to a file as a line of JSON; what is there
already is not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from speedrun.verify.probes import MEAN_NATS, PROBES, ROW_NATS
from speedrun.verify.verdict import Status, Verdict

CHEATS = Path(__file__).parents[1] / "tests" / "cheats"
_MEASURED = re.compile(r"([\d,]+) asked again, worst (\S+), mean (\S+) nats")


def read_file(name: str) -> ModuleType:
    """A file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, CHEATS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summarise(name: str, seed: int, verdict: Verdict) -> dict[str, Any]:
    """What the table needs of a verdict."""
    found = {
        result.id: {"worst": float(match[2]), "mean": float(match[3])}
        for result in verdict.results
        if (match := _MEASURED.match(result.measured))
    }
    alarms = {
        result.id: f"{result.status}: {result.measured}: {result.evidence}"
        for result in verdict.results
        if result.status is not Status.PASS
    }
    return {"variant": name, "seed": seed, "alarms": alarms, "probes": found}


def judge_all(names: list[str], repetitions: int, done: set[Any]) -> Iterator[dict[str, Any]]:
    """Verdicts, one repetition of all variants after the other."""
    conftest, honest = read_file("conftest"), sys.modules["test_honest"]
    with TemporaryDirectory() as folder:

        def open_court(text: str) -> Any:
            (Path(folder) / text).mkdir()
            return conftest.open_court(Path(folder) / text, text)

        school = honest.School(open_court)
        submissions = {}
        for seed, name in itertools.product(range(repetitions), names):
            if (name, seed) in done:
                continue
            if name not in submissions:
                submissions[name] = school.submit(name, Path(folder) / f"submission of {name}")
            yield summarise(name, seed, school.judge(name, submissions[name], probe_seed=seed))


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each variant."""
    print(f"Limits: {ROW_NATS:g} nats for one target, {MEAN_NATS:g} for the mean.\n")
    print("| variant | repetitions | false alarms | " + " | ".join(PROBES) + " | largest mean |")
    print("|---" * (len(PROBES) + 4) + "|")
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        cells = [name, str(len(mine)), str(sum(bool(row["alarms"]) for row in mine))]
        for probe in PROBES:
            worst = [row["probes"][probe]["worst"] for row in mine if probe in row["probes"]]
            both = (statistics.median(worst), max(worst)) if worst else ()
            cells.append(" / ".join(f"{value:.1g}" for value in both) or "-")
        means = [abs(each["mean"]) for row in mine for each in row["probes"].values()]
        cells.append(f"{max(means, default=0):.1g}")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Judge, print what was suspected as it comes, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--variant", action="append", help="by name; default: all")
    parser.add_argument("--out", type=Path, help="verdicts, a line each; goes on where it ended")
    options = parser.parse_args()
    variants = read_file("test_honest").VARIANTS
    undecided = {name for name, variant in variants.items() if variant.undecided}
    names = [
        name
        for name in options.variant or variants
        if not variants[name].program or Path(variants[name].program).exists()
    ]
    rows: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(row["variant"], row["seed"]) for row in rows}
    for row in judge_all(names, options.repetitions, done):
        rows.append(row)
        for rule, said in row["alarms"].items():
            print(f"{row['variant']}, seed {row['seed']}: {rule} {said}", file=sys.stderr)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print_table([row for row in rows if row["variant"] in names])
    sys.exit(any(row["alarms"] for row in rows if row["variant"] not in undecided))


if __name__ == "__main__":
    main()
