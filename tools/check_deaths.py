"""Kill ranks of a training at random moments; every run must end at once and resume to the bit.

    python tools/check_deaths.py [--kills 20] [--nproc 2] [--steps 300]

Each time a rank is drawn and a moment after the first steps. What is checked: the run ends within
30 s with an exit code other than 0 and one line that names the rank; `--resume` then gives the very
weights of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 30.0
SETTINGS = (
    *("model.ngram_order=0", "count.entries=[]", "model.match_order=0"),
    *("model.width=32", "model.mlp_hidden=64", "optim.grad_clip=1.0", "average.ema_decay=0.9"),
    *("data.sequence_length=256", "data.tokens_per_step=2048", "data.micro_batch_tokens=2048"),
    *('train.compile="no"', "train.checkpoint_every_s=0.5"),
)


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "speedrun", "run", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def ranks_of(parent: int) -> dict[int, int]:
    """Rank -> process id, of the ranks that a process started (Linux)."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, int(child))
    return found


def end_after_training(process: subprocess.Popen[str], folder: Path) -> bytes:
    """The trained weights; scoring and judging are not waited for."""
    weights = folder / "weights.safetensors"
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("packing"):
            break
    process.terminate()
    _, errors = process.communicate()
    if not weights.exists():
        sys.exit(f"no weights in {folder}: {errors}")
    return weights.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of ranks and moments")
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    company = ["--nproc", str(arguments.nproc)]
    common = ["--track", "pocket", "--budget", "10min", *company]
    common += [f"--set={text}" for text in (*SETTINGS, f"train.max_steps={arguments.steps}")]
    seconds, wrong = [], 0
    with tempfile.TemporaryDirectory() as out:
        begun = time.monotonic()
        whole = end_after_training(start(*common, "--out", f"{out}/whole"), one_in(out, "whole"))
        training_s = time.monotonic() - begun
        for number in range(arguments.kills):
            place = f"killed{number}"
            process = start(*common, "--out", f"{out}/{place}")
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step:10/"):
                    break
            time.sleep(dice.uniform(0, training_s / 3))
            rank = dice.randrange(arguments.nproc)
            ranks = ranks_of(process.pid)
            if rank not in ranks:
                sys.exit(f"kill {number}: the run was over before rank {rank} could be killed")
            os.kill(ranks[rank], signal.SIGKILL)
            killed = time.monotonic()
            output, errors = process.communicate(timeout=300)
            seconds.append(time.monotonic() - killed)
            steps = [line for line in output.splitlines() if line.startswith("step:")]
            folder = one_in(out, place)
            resumed = end_after_training(start("--resume", str(folder), *company), folder)
            complaints = {
                "took too long to end": seconds[-1] > LIMIT_S,
                "exit code 0": process.returncode == 0,
                "the error does not name the rank": f"rank {rank} was killed" not in errors,
                "more than one line on stderr": errors.count("\n") != 1,
                "other weights": resumed != whole,
            }
            found = [text for text, holds in complaints.items() if holds]
            wrong += bool(found)
            print(
                f"kill {number}: rank {rank} after {steps[-1].split()[0] if steps else 'step:10'}, "
                f"ended in {seconds[-1]:.1f} s, {'; '.join(found) or 'resumed to the same bits'}",
                flush=True,
            )
            if found:
                print(errors, file=sys.stderr)
    print(
        f"{wrong} of {arguments.kills} wrong; a run ended {statistics.median(seconds):.1f} s "
        f"after the kill (median), {max(seconds):.1f} s at most"
    )
    sys.exit(bool(wrong))


def one_in(out: str, place: str) -> Path:
    """The run folder of a run, once it is there."""
    stop = time.monotonic() + 120
    while time.monotonic() < stop:
        found = list(Path(out, place).glob("*/recipe.toml"))
        if found:
            return found[0].parent
        time.sleep(0.1)
    sys.exit(f"no run folder in {out}/{place}")


if __name__ == "__main__":
    main()
