"""A block of GPU memory that takes logits: the judge makes it, the predictor's process maps it.

It travels as a file descriptor, which passes namespaces of processes; the CUDA runtime's own
handles (cudaIpcMemHandle) do not. `store.Store` is its twin in host memory.

Source
    CUDA driver API, section "Virtual Memory Management"; numbers from cuda.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from speedrun.predict import call_driver, device_tensor, map_memory

if TYPE_CHECKING:
    import torch

_PINNED, _POSIX_DESCRIPTOR, _DEVICE = 1, 1, 1


class DeviceBlock:
    """Memory on the current CUDA device. It is given back when nobody maps it any more."""

    def __init__(self, num_bytes: int) -> None:
        """Make a block of at least so many bytes.

        Raises
            OSError: there is no driver, or it cannot share memory, or has none left.
            RuntimeError: torch has no working CUDA.
        """
        device = _current_device()
        # CUmemAllocationProp: type, kind of handle, place; nothing for Windows; no flags.
        wanted = struct.pack("4iP8x", _PINNED, _POSIX_DESCRIPTOR, _DEVICE, device, 0)
        step, descriptor = ctypes.c_size_t(), ctypes.c_int(-1)
        call_driver("cuMemGetAllocationGranularity", ctypes.byref(step), wanted, 0)
        self.num_bytes = -(-num_bytes // step.value) * step.value
        self._handle, zero = ctypes.c_uint64(), ctypes.c_uint64()
        size = ctypes.c_size_t(self.num_bytes)
        call_driver("cuMemCreate", ctypes.byref(self._handle), size, wanted, zero)
        self._address, self.descriptor = 0, -1
        try:
            call_driver(
                "cuMemExportToShareableHandle",
                ctypes.byref(descriptor),
                self._handle,
                _POSIX_DESCRIPTOR,
                zero,
            )
            self.descriptor = descriptor.value
            """What the predictor's process inherits."""
            self._address = map_memory(self._handle, self.num_bytes, device)
            self._tensor = device_tensor(self._address, self.num_bytes // 4)
        except BaseException:
            self.close()
            raise

    def copy(self, count: int) -> torch.Tensor:
        """The first numbers as a tensor of its own, which the process cannot reach."""
        return self._tensor[:count].clone()

    def close(self) -> None:
        """Unmap the block and drop the handle; tensors from `copy` stay."""
        with suppress(OSError, RuntimeError):
            if self.descriptor >= 0:
                os.close(self.descriptor)
            if self._address:
                _current_device()  # a copy may still be on its way
                address, size = ctypes.c_uint64(self._address), ctypes.c_size_t(self.num_bytes)
                call_driver("cuMemUnmap", address, size)
                call_driver("cuMemAddressFree", address, size)
            call_driver("cuMemRelease", self._handle)


def _current_device() -> int:
    import torch

    try:
        torch.cuda.synchronize()  # makes the context that the driver works in
        return torch.cuda.current_device()
    except AssertionError as error:  # a torch without CUDA
        raise RuntimeError(str(error)) from error
