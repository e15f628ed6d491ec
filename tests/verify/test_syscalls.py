"""Protects the filter of system calls: what it answers, on both machines, to every kind of call."""

from __future__ import annotations

import errno
import platform
import socket
import struct

import pytest

from speedrun.verify.syscalls import filter_program

ALLOWED, KILLED, REFUSED = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers by hand, from the kernel's tables, for calls that matter and calls that must work.
CALLS = {
    "x86_64": {
        "read": 0, "mmap": 9, "ioctl": 16, "socket": 41, "clone": 56, "execve": 59, "ptrace": 101,
        "setuid": 105, "mount": 165, "futex": 202, "unshare": 272, "setns": 308, "bpf": 321,
        "memfd_create": 319, "io_uring_setup": 425, "clone3": 435, "keyctl": 250, "chroot": 161,
        "utimensat": 280, "preadv2": 327, "mincore": 27,
    },
    "aarch64": {
        "read": 63, "mmap": 222, "ioctl": 29, "socket": 198, "clone": 220, "execve": 221,
        "ptrace": 117, "setuid": 146, "mount": 40, "futex": 98, "unshare": 97, "setns": 268,
        "bpf": 280, "memfd_create": 279, "io_uring_setup": 425, "clone3": 435, "keyctl": 219,
        "chroot": 51, "utimensat": 88, "preadv2": 286, "mincore": 232,
    },
}  # fmt: skip
THREAD, NEW_USER, NEW_NET = 0x003D0F00, 0x10000000, 0x40000000


def answer(program: bytes, audit: int, number: int, first: int = 0, second: int = 0) -> int:
    """Run a filter as the kernel does: loads, comparisons with jumps, returns."""
    data = struct.pack("<IIQQQQQQQ", number, audit, 0, first, second, 0, 0, 0, 0)
    code = list(struct.iter_unpack("<HBBI", program))
    place, value = 0, 0
    while True:
        operation, yes, no, operand = code[place]
        place += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
            continue
        holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}
        place += yes if holds[operation] else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_calls_are_answered_as_they_should_be(machine: str) -> None:
    program, numbers, audit = filter_program(machine), CALLS[machine], AUDIT[machine]

    def asked(name: str, *arguments: int) -> int:
        return answer(program, audit, numbers[name], *arguments)

    for name in ("read", "mmap", "execve", "setuid", "futex", "memfd_create"):
        assert asked(name) == ALLOWED, name
    for name in (
        "ptrace",
        "mount",
        "unshare",
        "setns",
        "bpf",
        "io_uring_setup",
        "keyctl",
        "chroot",
    ):
        assert asked(name) == REFUSED | errno.EPERM, name
    for name in ("preadv2", "mincore"):
        assert asked(name) == REFUSED | errno.EPERM
    assert asked("utimensat") == REFUSED | 0  # an error of 0 is success
    assert asked("clone3") == REFUSED | errno.ENOSYS
    assert asked("clone", THREAD) == ALLOWED
    assert asked("clone", THREAD | NEW_USER) == REFUSED | errno.EPERM
    assert asked("clone", NEW_NET) == REFUSED | errno.EPERM
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16):
        assert asked("socket", family) == ALLOWED
    for family in (17, 38, 40):  # packets, ciphers, virtual machines
        assert asked("socket", family) == REFUSED | errno.EAFNOSUPPORT
    assert asked("ioctl", 0, 0x5401) == ALLOWED  # TCGETS: is it a terminal?
    assert asked("ioctl", 0, 0x5412) == REFUSED | errno.EPERM
    assert (
        asked("ioctl", 0, 0xFFFFFFFF_00005412) == REFUSED | errno.EPERM
    )  # the kernel sees 32 bits
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    assert answer(program, AUDIT[other], numbers["read"]) == KILLED
    assert answer(program, 0x40000003, numbers["read"]) == KILLED  # 32-bit calls
    if machine == "x86_64":
        assert answer(program, audit, 0x40000000 | numbers["read"]) == REFUSED | errno.ENOSYS


def test_a_machine_whose_numbers_are_unknown_has_no_filter() -> None:
    assert filter_program("riscv64") == b""
    assert filter_program() == filter_program(platform.machine())
