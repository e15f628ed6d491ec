"""Shared memory that takes the logits of one call: a predictor writes, the judge copies."""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from typing import Any

import numpy as np

from speedrun.errors import CoverageError
from speedrun.verify.walls import FIRST_INHERITED


class Store:
    """A file without a name, inherited by one process, which can make it longer, never shorter.

    So the judge may map it. What it maps can still change under its eyes: it copies first.
    """

    def __init__(self) -> None:
        self._view: Any = np.empty(0, np.uint8)
        self._sealed = hasattr(os, "memfd_create")
        if self._sealed:
            import fcntl

            self.descriptor = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        else:
            self.descriptor, name = tempfile.mkstemp(prefix="speedrun-logits-")
            os.unlink(name)  # noqa: PTH108 - open and nameless, like its sealed twin

    @property
    def path(self) -> str:
        """Its path in the process that inherits it first."""
        return f"/{'proc/self' if self._sealed else 'dev'}/fd/{FIRST_INHERITED}"

    def read_into(self, target: np.ndarray) -> None:
        """Copy the first bytes of the file into an array.

        Raises
            CoverageError: the file is shorter.
        """
        found = os.fstat(self.descriptor).st_size
        if found < target.nbytes:
            raise CoverageError(
                f"the predictor wrote {found:,} bytes of logits, expected {target.nbytes:,}"
            )
        raw = target.reshape(-1).view(np.uint8)
        if not self._sealed:
            self._read(raw.data)
            return
        if len(self._view) < len(raw):
            mapped = mmap.mmap(self.descriptor, found, mmap.MAP_SHARED, mmap.PROT_READ)
            self._view = np.frombuffer(mapped, np.uint8)
        np.copyto(raw, self._view[: len(raw)])

    def _read(self, left: memoryview) -> None:
        """Without seals a mapping could be cut short under the judge, which would end it."""
        place = 0
        while left:
            count = os.preadv(self.descriptor, [left], place)
            if not count:
                raise CoverageError("the predictor cut its logits short while they were read")
            left, place = left[count:], place + count

    def close(self) -> None:
        """Give the memory back once the process has gone, too."""
        self._view = np.empty(0, np.uint8)
        with suppress(OSError):
            os.close(self.descriptor)
