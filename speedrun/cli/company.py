"""Training by several processes: started here, and what each of them does.

`python -m speedrun.cli.company FOLDER DATA SCREEN [TRACKER...]` is one rank; it trains what is in
the run folder and leaves the weights there; the process that started it packs and judges.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speedrun.cli.signals import RunInterruptedError
from speedrun.errors import ConfigError, RankLostError, SpeedrunError

if TYPE_CHECKING:
    from speedrun.config import RunConfig
    from speedrun.data.dataset import Dataset

GRACE_S = 20.0
"""A rank that was told to end is given so long to save. The launcher itself would wait 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """How many processes train, and where they meet."""

    num_processes: int
    """On this machine."""
    num_machines: int = 1
    meeting_point: str = ""

    @property
    def words(self) -> str:
        """The options that ask for it."""
        machines = f"--nnodes {self.num_machines} --rdzv {self.meeting_point} "
        return f"{machines * (self.num_machines > 1)}--nproc {self.num_processes}"

    @property
    def is_alone(self) -> bool:
        """One process, which need not be started."""
        return self.num_processes * self.num_machines == 1


def form_company(num_processes: int | None, num_machines: int, meeting_point: str) -> Company:
    """What `--nproc`, `--nnodes` and `--rdzv` ask for: by default a process per visible GPU.

    Raises
        ConfigError: they contradict each other, or this process is itself one of several.
    """
    from speedrun.ranks import visible_world

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "speedrun run starts its processes itself: call it once, with --nproc, and not with "
            "torchrun (which is for a bundle: torchrun --nproc-per-node 8 train_gpt.py)"
        )
    if (num_machines > 1) != bool(meeting_point):
        raise ConfigError(
            "several machines need both --nnodes N and --rdzv HOST:PORT, the same on all of them"
        )
    return Company(
        num_processes=num_processes or visible_world(),
        num_machines=num_machines,
        meeting_point=meeting_point,
    )


def train_together(
    run: RunConfig,
    dataset: Dataset,
    folder: Path,
    company: Company,
    *,
    overlap: Mapping[str, str],
    as_json: bool,
    log_to: Sequence[str] = (),
) -> bool:
    """Train in processes of their own; the weights are in the run folder then.

    Returns whether they are: among several machines only that of rank 0 has them.

    Raises
        RunInterruptedError: a signal came; the checkpoint is on disk.
        RankLostError: a process died.
    """
    from speedrun.cli.folder import note_environment, read_trained
    from speedrun.clock import Clock, Ledger
    from speedrun.train.launch import SignalledError, launch

    if read_trained(folder):
        return True
    note_environment(folder, dataset)
    with Clock(run.train.budget_s, Ledger(folder / "ledger.jsonl")).phase("data") as booked:
        booked.update(overlap)
    # With another number of ranks sums are rounded in another order, no more.
    go_on = f"go on with: speedrun run --resume {folder} {company.words}"
    number = signal.SIGTERM
    try:
        launch(
            "speedrun.cli.company",
            [str(folder), str(dataset.folder), "json" if as_json else "plain", *log_to],
            num_processes=company.num_processes,
            num_machines=company.num_machines,
            meeting_point=company.meeting_point,
        )
    except SignalledError as signalled:
        number = signal.Signals(signalled.number)
    except RankLostError as error:
        saved = (folder / "checkpoint").exists()
        what = go_on if saved else "no checkpoint was due yet, start again"
        raise RankLostError(f"{error}; {what}") from error
    else:
        if read_trained(folder):
            return True
        if company.num_machines > 1 and not (folder / "checkpoint").exists():
            return False
    raise RunInterruptedError(f"interrupted; the checkpoint is saved, {go_on}", number)


def main() -> None:
    """One rank, from the command line."""
    from speedrun.train.launch import OUR_ERROR, leave_message

    folder, data, kind, *log_to = sys.argv[1:]
    _end_in_time()
    try:
        _train_rank(Path(folder), data, log_to, as_json=kind == "json")
    except SpeedrunError as error:
        leave_message(f"{OUR_ERROR}{error}")
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 (whatever it is, the launcher tells it)
        leave_message(f"{type(error).__name__}: {error}", traceback.format_exc())
        sys.exit(SpeedrunError.exit_code)


def _train_rank(folder: Path, data: str, log_to: Sequence[str], *, as_json: bool) -> None:
    from speedrun.cli.folder import read_folder
    from speedrun.cli.screen import open_screen
    from speedrun.cli.trackers import open_trackers
    from speedrun.cli.training import train_run
    from speedrun.clock import Clock, Ledger
    from speedrun.data.corpus import open_corpus
    from speedrun.ranks import Ranks
    from speedrun.train.log import RunLog

    run, _ = read_folder(folder)
    ranks = Ranks.from_environment()
    dataset = open_corpus(data, echo=lambda line: None)
    budget_s = run.train.budget_s - run.quant.calibration_s
    if not ranks.is_main:
        train_run(run, dataset, folder, Clock(budget_s, Ledger(None)), RunLog(), ranks)
        ranks.close()
        return
    clock = Clock(budget_s, Ledger(folder / "ledger.jsonl"))
    with (
        open_screen(run.train.budget_s, as_json=as_json) as screen,
        open_trackers(log_to, run, folder, screen.say) as tell,
    ):
        log = RunLog(folder, screen.say, screen.on_step, tell)
        train_run(run, dataset, folder, clock, log, ranks)
    ranks.close()


def _end_in_time() -> None:
    """End this process some time after the first signal, whatever it is doing.

    Python runs its handlers between two of its own instructions; a rank that waits inside torch for
    one that is dead never gets there. But the number is written to this pipe at once.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def watch() -> None:
        number = os.read(heard, 1)[0]
        time.sleep(GRACE_S)
        os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
