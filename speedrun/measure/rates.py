"""What a device can do at most: products, copies, files, messages. Each takes about a second."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from speedrun.errors import SpeedrunError
from speedrun.kernels.newton_schulz import matmul_dtype

PATIENCE_S = 0.4
"""How long one rate is looked for."""
GIGABYTE = 1e9


def wait_for(device: torch.device) -> None:
    """Return when the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(
    call: Callable[[], object], device: torch.device, *, patience_s: float = PATIENCE_S
) -> float:
    """Seconds of one call at its best; the first call, which sets things up, does not count."""
    call()
    wait_for(device)
    best_s, began_s = float("inf"), time.perf_counter()
    while time.perf_counter() - began_s < patience_s or best_s == float("inf"):
        started_s = time.perf_counter()
        call()
        wait_for(device)
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s


def training_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The dtype of a training step's products, for a value of `train.precision`."""
    if precision == "auto":
        return matmul_dtype(device.type)
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product, the best of three sizes."""
    best = 0.0
    for size in (2048, 4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = best_seconds(lambda a=left, b=right, to=out: torch.mm(a, b, out=to), device)  # type: ignore[misc]
        best = max(best, 2 * size**3 / seconds)
    return best


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read plus bytes written per second, copying inside the device's memory."""
    num_bytes = 1 << 30 if device.type == "cuda" else 1 << 27
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / best_seconds(lambda: target.copy_(source), device)


def launch_seconds(device: torch.device) -> float:
    """Seconds that one small operation costs when many are asked for in a row."""
    one = torch.ones(1, device=device)
    calls = 1000

    def ask() -> None:
        for _ in range(calls):
            one.add_(1)

    return best_seconds(ask, device) / calls


def python_additions_per_s() -> float:
    """Turns per second of a plain Python loop that adds: how fast one core runs the host's side."""
    turns = 200_000

    def add() -> None:
        total = 0
        for index in range(turns):
            total += index

    return turns / best_seconds(add, torch.device("cpu"))


def disk_bytes_per_s(folder: Path) -> float:
    """Bytes per second of writing a file in `folder` until it is on the disk, the better of two.

    Raises
        OSError: nothing can be written there.
    """
    data = os.urandom(1 << 25)
    best_s = float("inf")
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        for index in range(2):
            started_s = time.perf_counter()
            with (Path(inside) / str(index)).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            best_s = min(best_s, time.perf_counter() - started_s)
    return len(data) / best_s


def average_bytes_per_s(world: int, *, timeout_s: float = 60.0) -> float:
    """Bytes per second at which `world` processes average one large gradient, each with its device.

    Raises
        SpeedrunError: they cannot reach each other, or not in time; says what they said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "speedrun.measure.average"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [
        subprocess.Popen(
            command,
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **pipes,  # type: ignore[call-overload]
        )
        for rank in range(world)
    ]
    try:
        said = [child.communicate(timeout=timeout_s) for child in children]
    except subprocess.TimeoutExpired:
        raise SpeedrunError(
            f"{world} processes did not find each other in {timeout_s:g} s"
        ) from None
    finally:
        for child in children:
            child.kill()
            child.wait()
    for rank, (child, (_, err)) in enumerate(zip(children, said, strict=True)):
        if child.returncode:
            last = err.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
            raise SpeedrunError(f"rank {rank} of {world}: {last[0]:.200}")
    return float(said[0][0])
