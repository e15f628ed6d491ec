"""Is this machine ready, and as fast as its kind should be? One line for every question.

A line is OK, NOTE (slower or less than it could be, with what to do) or WRONG (a run would fail, or
waste most of the machine).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from speedrun.errors import SpeedrunError
from speedrun.hardware import cpu_name, usable_cores
from speedrun.kernels.newton_schulz import matmul_dtype
from speedrun.measure import rates

Status = Literal["OK", "NOTE", "WRONG"]
OLDEST_TORCH = (2, 9)
LEAST_SHARE = 0.55
"""Of a data sheet's rate, which large products and copies reach on a healthy GPU."""
WRONG_SHARE = 0.25
"""Below this share of a reference something is broken, not merely slow."""
LEAST_DISK_BYTES = 5_000_000_000
LEAST_MEMORY_BYTES = 4_000_000_000
CORE_FLOPS = 15e9
"""Float32 operations per second of one core: a third of what AVX2 at 2.5 GHz reaches here."""
HOST_COPY = 4e9
DISK_WRITE = 50e6
PYTHON_ADDITIONS = 8e6
GLOO_BYTES = 100e6
NCCL_BYTES = 20e9
LAUNCH_S = 15e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What a GPU's data sheet promises."""

    bf16_flops: float
    """Dense, without sparsity."""
    memory_bytes_per_s: float


SHEETS = {
    "GB200": Sheet(bf16_flops=2500e12, memory_bytes_per_s=8.0e12),
    "B200": Sheet(bf16_flops=2250e12, memory_bytes_per_s=8.0e12),
    "H200": Sheet(bf16_flops=989e12, memory_bytes_per_s=4.8e12),
    "H100 PCIe": Sheet(bf16_flops=756e12, memory_bytes_per_s=2.0e12),
    "H100 NVL": Sheet(bf16_flops=835e12, memory_bytes_per_s=3.9e12),
    "H100": Sheet(bf16_flops=989e12, memory_bytes_per_s=3.35e12),
    "A100-SXM4-40": Sheet(bf16_flops=312e12, memory_bytes_per_s=1.555e12),
    "A100-PCIE-40": Sheet(bf16_flops=312e12, memory_bytes_per_s=1.555e12),
    "A100": Sheet(bf16_flops=312e12, memory_bytes_per_s=1.935e12),
    "L40S": Sheet(bf16_flops=362e12, memory_bytes_per_s=0.864e12),
    "RTX 4090": Sheet(bf16_flops=165e12, memory_bytes_per_s=1.008e12),
    "RTX 3090": Sheet(bf16_flops=71e12, memory_bytes_per_s=0.936e12),
}
"""By a part of the device's name, the most special first. NVIDIA's data sheets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One question and its answer."""

    name: str
    status: Status = "OK"
    found: str
    expected: str = ""
    fix: str = ""
    """What to do, where the status is not OK."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def examine(folder: Path) -> Iterator[Line]:
    """Ask everything, cheapest first; `folder` is where runs would be written."""
    yield check_torch(torch.__version__)
    yield check_cores(usable_cores(), os.getloadavg()[0])
    yield check_memory(_available_bytes())
    yield check_compiler()
    yield check_bubblewrap()
    yield check_triton()
    yield from check_disk(folder)
    fix = "the host's side of a step is Python: stop other work, or take a faster processor"
    turns = rates.python_additions_per_s()
    yield judge("python", turns, PYTHON_ADDITIONS, 1e6, "M additions/s", fix=fix)
    yield from check_cpu()
    devices = range(torch.cuda.device_count())
    for index in devices:
        yield from check_gpu(torch.device("cuda", index))
    if not devices:
        yield Line(name="GPU", found="none; the pocket track needs none")
    yield from check_messages(max(len(devices), 2), "NCCL" if len(devices) > 1 else "gloo")


def judge(
    name: str,
    measured: float,
    reference: float,
    unit: float,
    unit_name: str,
    *,
    fix: str,
    may_be_wrong: bool = False,
) -> Line:
    """Hold a rate against the one that a healthy machine reaches."""
    share = measured / reference
    status: Status = "OK" if share >= 1 else "NOTE"
    if may_be_wrong and share < WRONG_SHARE / LEAST_SHARE:
        status = "WRONG"
    return Line(
        name=name,
        status=status,
        found=f"{measured / unit:,.1f} {unit_name}",
        expected=f"{reference / unit:,.1f} or more",
        fix="" if status == "OK" else fix,
    )


def check_torch(version: str) -> Line:
    """Whether torch is new enough."""
    parts = version.split("+")[0].split(".")[:2]
    built = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", for CPUs"
    oldest = ".".join(map(str, OLDEST_TORCH))
    is_new = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts) >= OLDEST_TORCH
    return Line(
        name="torch",
        status="OK" if is_new else "WRONG",
        found=f"{version}{built}, Python {sys.version.split()[0]}",
        expected=f"{oldest} or newer",
        fix="" if is_new else f"pip install 'torch>={oldest}'",
    )


def check_cores(cores: int, load: float) -> Line:
    """Whether the cores are free."""
    is_free = load < cores / 2 + 0.5
    return Line(
        name="processor",
        status="OK" if is_free else "NOTE",
        found=f"{cores} cores of {cpu_name()}, load {load:.1f}",
        expected=f"a load below {cores / 2 + 0.5:.1f}",
        fix="" if is_free else "other work is running: every figure below is too low",
    )


def check_memory(available_bytes: int | None) -> Line:
    """Whether a run has room in the host's memory."""
    if available_bytes is None:
        return Line(name="memory", found="this system does not tell")
    has_room = available_bytes >= LEAST_MEMORY_BYTES
    return Line(
        name="memory",
        status="OK" if has_room else "NOTE",
        found=f"{available_bytes / 1e9:.1f} GB available",
        expected=f"{LEAST_MEMORY_BYTES / 1e9:g} GB or more",
        fix="" if has_room else "close other programs, or take a smaller recipe",
    )


def check_compiler() -> Line:
    """Whether torch.compile finds a C++ compiler, which it needs on a CPU."""
    command = os.environ.get("CXX", "").split() or ["g++"]
    found = next(filter(None, map(shutil.which, (command[0], "clang++"))), None)
    return Line(
        name="C++ compiler",
        status="OK" if found else "NOTE",
        found=found or "none",
        fix="" if found else "steps on a CPU run eagerly, at about half speed: install g++",
    )


def check_bubblewrap() -> Line:
    """Whether the judge's sandbox can be built."""
    program = shutil.which("bwrap")
    if program is None:
        return Line(
            name="sandbox",
            status="NOTE",
            found="no bubblewrap",
            fix="submissions are judged UNSANDBOXED: apt-get install bubblewrap",
        )
    trial = [program, "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "true"]
    done = subprocess.run(trial, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return Line(
            name="sandbox",
            status="NOTE",
            found=f"bubblewrap cannot make namespaces here: {said:.100}",
            fix="allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or run as root",
        )
    return Line(name="sandbox", found=program)


def check_triton() -> Line:
    """Whether fused kernels can be compiled."""
    try:
        import triton
    except ImportError:
        needed = torch.cuda.is_available()
        return Line(
            name="Triton",
            status="WRONG" if needed else "OK",
            found="not installed" + ("" if needed else "; only GPUs need it"),
            fix="torch.compile needs it on a GPU: pip install triton" if needed else "",
        )
    return Line(name="Triton", found=triton.__version__)


def check_disk(folder: Path) -> Iterator[Line]:
    """Room and speed where runs are written."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    has_room = free >= LEAST_DISK_BYTES
    yield Line(
        name="disk room",
        status="OK" if has_room else "NOTE",
        found=f"{free / 1e9:,.1f} GB free in {folder}",
        expected=f"{LEAST_DISK_BYTES / 1e9:g} GB or more",
        fix="" if has_room else "remove old runs, or write elsewhere with --out",
    )
    try:
        rate = rates.disk_bytes_per_s(folder)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        yield Line(name="disk", status="WRONG", found=reason, fix="write elsewhere with --out")
        return
    fix = "checkpoints will take long: write to a local disk with --out"
    yield judge("disk", rate, DISK_WRITE, 1e6, "MB/s written", fix=fix)


def check_cpu() -> Iterator[Line]:
    """Products and copies of the processor."""
    cpu = torch.device("cpu")
    threads = torch.get_num_threads()
    for dtype in dict.fromkeys((torch.float32, matmul_dtype("cpu"))):
        name = f"products, {str(dtype).removeprefix('torch.')}"
        yield judge(
            name,
            rates.matmul_flops(cpu, dtype),
            CORE_FLOPS * threads,
            1e9,
            f"GFLOP/s on {threads} threads",
            fix="stop other work; OMP_NUM_THREADS should be the number of real cores",
        )
    fix = "memory is shared with other work, or its channels are not all in use"
    yield judge("copies", rates.copy_bytes_per_s(cpu), HOST_COPY, 1e9, "GB/s", fix=fix)


def check_gpu(device: torch.device) -> Iterator[Line]:
    """Everything about one GPU."""
    facts = torch.cuda.get_device_properties(device)
    name = f"GPU {device.index}"
    free, total = torch.cuda.mem_get_info(device)
    is_free = free >= 0.9 * total
    yield Line(
        name=name,
        status="OK" if is_free else "WRONG",
        found=f"{facts.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free",
        expected="nine tenths of its memory",
        fix="" if is_free else "another process holds its memory: nvidia-smi names it",
    )
    dtype = matmul_dtype("cuda")
    sheet = next((SHEETS[key] for key in SHEETS if key in facts.name), None)
    products, copies = rates.matmul_flops(device, dtype), rates.copy_bytes_per_s(device)
    # Asked while it is still warm: an idle GPU lowers its clocks.
    yield from check_smi(name, query_smi(device.index or 0))
    if sheet is None:
        yield Line(name=f"{name} products", found=f"{products / 1e12:,.0f} TFLOP/s, {dtype}")
        yield Line(name=f"{name} copies", found=f"{copies / 1e12:,.2f} TB/s")
    else:
        for what, measured, reference, unit, unit_name in (
            ("products", products, sheet.bf16_flops, 1e12, "TFLOP/s"),
            ("copies", copies, sheet.memory_bytes_per_s, 1e12, "TB/s"),
        ):
            yield judge(
                f"{name} {what}",
                measured,
                LEAST_SHARE * reference,
                unit,
                f"{unit_name}, {measured / reference:.0%} of the data sheet",
                fix="look at clocks, power limit, temperature and other processes: nvidia-smi -q",
                may_be_wrong=True,
            )
    launch_s = rates.launch_seconds(device)
    yield judge(
        f"{name} launches",
        1 / launch_s,
        1 / LAUNCH_S,
        1e3,
        f"thousand/s, {1e6 * launch_s:.1f} us each",
        fix="small steps will wait for the host: take a faster processor or a larger micro-batch",
    )
    yield from check_attention(device)


SMI_KEYS = ("driver_version", "clocks.sm", "clocks.max.sm", "power.limit", "power.max_limit")


def query_smi(index: int) -> dict[str, str]:
    """What nvidia-smi says about a GPU, by `SMI_KEYS`; nothing where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [f"--query-gpu={','.join(SMI_KEYS)}", "--format=csv,noheader,nounits", f"-i={index}"]
    done = subprocess.run(
        [program, *query], capture_output=True, text=True, timeout=10, check=False
    )
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(SMI_KEYS, values, strict=True)) if len(values) == len(SMI_KEYS) else {}


def check_smi(name: str, said: dict[str, str]) -> Iterator[Line]:
    """Driver, clocks and power of a GPU that was busy a moment ago."""
    if not said:
        yield Line(name=f"{name} driver", found="nvidia-smi does not tell")
        return
    yield Line(name=f"{name} driver", found=said["driver_version"])
    for what, now, most, unit, fix in (
        (
            "clock",
            "clocks.sm",
            "clocks.max.sm",
            "MHz",
            "too hot, or capped: nvidia-smi -q -d CLOCK",
        ),
        ("power limit", "power.limit", "power.max_limit", "W", "raise it: nvidia-smi -pl"),
    ):
        try:
            share = float(said[now]) / float(said[most])
        except ValueError:  # "[N/A]"
            continue
        yield Line(
            name=f"{name} {what}",
            status="OK" if share >= 0.7 else "NOTE",
            found=f"{said[now]} of {said[most]} {unit}",
            expected="seven tenths or more",
            fix="" if share >= 0.7 else fix,
        )


def check_attention(device: torch.device) -> Iterator[Line]:
    """Which ways to compute attention work here, and how fast beside torch's own choice."""
    from speedrun.ranks import Ranks
    from speedrun.recipes.load import load_recipe
    from speedrun.train.fast_paths import measure, trials

    run = load_recipe("golf/baseline")
    (trial,) = (each for each in trials(run, Ranks(device=device)) if each.name == "attention")
    findings = measure(trial)
    works = any(not finding.failure for finding in findings)
    yield Line(
        name="attention",
        status="OK" if works else "NOTE",
        found="; ".join(map(str, findings)),
        fix="" if works else "only torch's own choice works: update torch, or the driver",
    )


def check_messages(world: int, kind: str) -> Iterator[Line]:
    """Whether several processes reach each other, and how fast they average gradients."""
    try:
        rate = rates.average_bytes_per_s(world)
    except SpeedrunError as error:
        yield Line(
            name=f"{kind}, {world} ranks",
            status="WRONG" if kind == "NCCL" else "NOTE",
            found=str(error),
            fix="runs on several devices will not start; with NCCL_DEBUG=INFO it says more",
        )
        return
    yield judge(
        f"{kind}, {world} ranks",
        rate,
        NCCL_BYTES if kind == "NCCL" else GLOO_BYTES,
        1e9,
        "GB/s of gradients averaged",
        fix="look at the links between the GPUs: nvidia-smi topo -m"
        if kind == "NCCL"
        else "more processes than free cores: one rank is faster here",
    )


def _available_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass  # not Linux
    return None


def exit_code(lines: list[Line]) -> int:
    """1 if something is wrong, else 0."""
    return int(any(line.status == "WRONG" for line in lines))
