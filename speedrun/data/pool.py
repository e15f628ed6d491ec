"""Worker processes with a bounded queue; they end when whoever started them is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from speedrun.errors import DataError

_state: Any = None


class Pool:
    """Runs `task(state, *arguments)` in `workers` processes, or here if that is one.

    `enter(context)` makes each process's state. At most two tasks a worker wait, so that a fast
    reader cannot fill memory.
    """

    def __init__(self, workers: int, enter: Callable[[Any], Any], context: Any) -> None:
        self._limit = 2 * workers
        self._waiting: deque[Future[Any]] = deque()
        self._executor: ProcessPoolExecutor | None = None
        self._own: Any = None
        if workers > 1:
            self._executor = ProcessPoolExecutor(
                workers,
                # A fork would copy whatever threads and locks the caller has.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(enter, context),
            )
        else:
            self._own = enter(context)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start a task, after waiting for a place; errors of earlier tasks come out here.

        Raises
            DataError: a worker died.
        """
        if self._executor is None:
            future: Future[Any] = Future()
            future.set_result(task(self._own, *arguments))
            return future
        while len(self._waiting) >= self._limit:
            self._take()
        try:
            future = self._executor.submit(_run, task, arguments)
        except BrokenProcessPool as error:
            raise _died() from error
        self._waiting.append(future)
        return future

    def finish(self) -> None:
        """Wait for all tasks.

        Raises
            DataError: a worker died.
        """
        while self._waiting:
            self._take()

    def _take(self) -> None:
        try:
            self._waiting.popleft().result()
        except BrokenProcessPool as error:
            raise _died() from error


def _died() -> DataError:
    return DataError(
        "a worker process died (killed, or out of memory); give the same command again to go on, "
        "with fewer --workers if memory is short"
    )


def _start(enter: Callable[[Any], Any], context: Any) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Threads of libraries would fight over processors that all have their own worker.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _state = enter(context)


def _watch(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _run(task: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return task(_state, *arguments)
