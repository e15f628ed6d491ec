"""Start one process per rank with torch's elastic launcher, and say which one broke, and how."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speedrun.errors import RankLostError
from speedrun.files import write_atomic
from speedrun.hardware import usable_cores

RUN_ID = "speedrun"
"""By which the machines of one run know each other at the meeting point."""


class SignalledError(Exception):
    """A signal came; all ranks had it, too, and have ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def launch(
    module: str,
    arguments: Sequence[str],
    *,
    num_processes: int,
    num_machines: int = 1,
    meeting_point: str = "",
) -> None:
    """Run `python -m module arguments...` as every rank of this machine, until all have ended well.

    `meeting_point` is HOST:PORT of one of several machines, each of which calls this. When a rank
    dies, the others are ended.

    Raises
        RankLostError: a rank died, with what it said last; or the machines did not meet.
        SignalledError: SIGINT or SIGTERM came.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    is_alone = num_machines == 1
    config = LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=num_processes,
        run_id=str(uuid.uuid4()) if is_alone else RUN_ID,
        rdzv_backend="c10d",
        # Port 0: whichever is free.
        rdzv_endpoint="127.0.0.1:0" if is_alone else meeting_point,
        # A machine's own name need not lead to it.
        local_addr="127.0.0.1" if is_alone else None,
        # The clock would run on while a rank is started again, so there is one attempt.
        max_restarts=0,
    )
    command = ["-m", module, *arguments]
    try:
        with _quiet(), _handlers_restored(), _threads_shared(num_processes):
            elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        raise RankLostError(describe_failure(error.failures)) from error
    except SignalException as error:
        raise SignalledError(int(error.sigval)) from error
    except (RendezvousError, ConnectionError, OSError) as error:
        raise RankLostError(
            f"the processes cannot meet at {meeting_point or 'this machine'}: {error}; "
            "check --rdzv and that its port can be reached from every machine"
        ) from error


def describe_failure(failures: Mapping[int, Any]) -> str:
    """The root cause among torch's `ProcessFailure` by rank, in one line.

    When a rank dies, those that wait for it fail, too, some before the launcher has seen it. A rank
    that was killed has caused that and not suffered it, and so has one whose error is ours.
    """

    def blame(item: tuple[int, Any]) -> tuple[int, int, int]:
        rank, failure = item
        was_killed = failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
        is_ours = OUR_ERROR in _words_of(failure)
        return (0 if was_killed else 1 if is_ours else 2), failure.timestamp, rank

    rank, failure = min(failures.items(), key=blame)
    words = _words_of(failure)
    if failure.exitcode < 0 and OUR_ERROR not in words:
        name = signal.Signals(-failure.exitcode).name
        return f"rank {rank} was killed by {name}{'; out of memory?' * (name == 'SIGKILL')}"
    return f"rank {rank}: {words.rpartition(OUR_ERROR)[2]}"


def _words_of(failure: Any) -> str:
    """What a rank said last, in one line: torch gives it bare or with the trace beside it."""
    message = failure.message
    words = message.get("message", "") if isinstance(message, dict) else message
    return " ".join(str(words).split())


def leave_message(words: str, trace: str = "") -> None:
    """What a rank says last, where the launcher looks for it, in the launcher's format.

    Whole or not at all: torch's own handler can be killed while it writes, and half a file is an
    exception in the launcher.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        facts = {"py_callstack": trace, "timestamp": str(int(time.time()))}
        message = {"message": {"message": words, "extraInfo": facts}}
        write_atomic(Path(path), json.dumps(message).encode())


OUR_ERROR = "SpeedrunError: "
"""How a rank begins the message of an error that a person can mend, for `describe_failure`."""


@contextmanager
def _quiet() -> Iterator[None]:
    """The launcher tells each death in twenty lines; ours is one."""
    # Each of its loggers has a level of its own.
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """The launcher leaves its handlers of signals behind."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _threads_shared(num_processes: int) -> Iterator[None]:
    """Ranks share the cores, unless the person has said how many threads each has."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(usable_cores() // num_processes, 1))
    try:
        yield
    finally:
        del os.environ[name]
