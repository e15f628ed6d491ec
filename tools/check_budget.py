"""Run short trainings again and again and read their ledgers: no training second over the budget.

python tools/check_budget.py [--runs 10] [--budget 20s]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from speedrun.clock import Ledger
from speedrun.units import parse_duration

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budget", default="20s")
    parser.add_argument("--recipe", default="pocket/default")
    arguments = parser.parse_args()
    limit_s = parse_duration(arguments.budget)
    spent = []
    for seed in range(arguments.runs):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "speedrun", "run", "--track", "pocket", "--out", out]
            command += ["--budget", arguments.budget, "--seed", str(seed)]
            command += ["--recipe", arguments.recipe]
            # Scoring is not what is checked here: chunks are quick.
            command += ["--set", "evaluation.stride=8192"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            ledgers = list(Path(out).glob("*/ledger.jsonl"))
            if done.returncode or not ledgers:
                sys.exit(f"run {seed} failed with exit code {done.returncode}: {done.stderr}")
            ledger = Ledger(ledgers[0])
        spent.append(ledger.budgeted_s)
        discarded = sum(phase.name.startswith("discarded") for phase in ledger.phases)
        print(f"run {seed}: {spent[-1]:.6f} s of {limit_s:g}, {discarded} discarded", flush=True)
    over = sum(seconds > limit_s for seconds in spent)
    print(
        f"{over} of {len(spent)} over {limit_s:g} s; most {max(spent):.6f}, least {min(spent):.6f}"
    )
    sys.exit(bool(over))


if __name__ == "__main__":
    main()
