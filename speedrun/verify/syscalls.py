"""The system calls that a judged process may not make, as a seccomp filter for bubblewrap.

Namespaces already hide files, processes and networks. The filter closes what they leave: new
namespaces of one's own, sockets that no network namespace holds back (a virtual machine's host is
one `AF_VSOCK` away), and corners of the kernel that a predictor has no use for.

Source
    The idea and most of the list: flatpak's and Docker's default profiles. Theirs name what a
    desktop or a server needs; a predictor needs less.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

# Names of <asm/unistd.h>; numbers for x86_64 and aarch64.
_DENIED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "ptrace": (101, 117),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    # A ring makes system calls that no filter sees.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # They tell which pages of a file were read before: a message from an earlier process.
    "preadv2": (327, 286),
    "mincore": (27, 232),
    "cachestat": (451, 451),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "syslog": (103, 116),
}
# Whoever may write to a device, as everybody may to /dev/null, may also set its times, which the
# next process could read. These do nothing and say that they did it: copying a file ends so.
_IGNORED = {
    "utimensat": (280, 88),
    "utime": (132, 88),
    "utimes": (235, 88),
    "futimesat": (261, 88),
}
_CLONE, _CLONE3, _SOCKET, _IOCTL = (56, 220), (435, 435), (41, 198), (16, 29)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column above, and what the kernel calls the machine (AUDIT_ARCH in <linux/audit.h>)."""
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, CLONE_NEWCGROUP, ..., CLONE_NEWNET."""
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16)  # 16: netlink, asked for routes
_TERMINAL = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: ioctls that type on somebody else's terminal."""

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _RETURN, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
# Offsets in struct seccomp_data; the low halves of arguments on little-endian machines.
_NUMBER, _MACHINE, _FIRST, _SECOND = 0, 4, 16, 24


def filter_program(machine: str = "") -> bytes:
    """The filter as `struct sock_filter[]`; empty for machines whose call numbers are not listed.

    Denied calls fail with EPERM, as they would for a process without rights; setting the times of
    a file does nothing.
    """
    column, audit = _MACHINES.get(machine or platform.machine(), (0, 0))
    if not audit:
        return b""
    code: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        code.append((_LOAD, 0, 0, offset))

    def answer(value: int) -> None:
        code.append((_RETURN, 0, 0, value))

    def when(test: int, operand: int, value: int) -> None:
        code.append((test, 0, 1, operand))
        answer(value)

    def call(numbers: tuple[int, int], length: int) -> None:
        """Step into the next `length` instructions for this call only."""
        code.append((_IF_EQUAL, 0, length, numbers[column]))

    load(_MACHINE)
    code.append((_IF_EQUAL, 1, 0, audit))
    answer(_KILL)
    load(_NUMBER)
    if column == 0:
        when(_IF_AT_LEAST, 0x40000000, _ERRNO | errno.ENOSYS)  # the x32 doubles of every call
    for numbers in _DENIED.values():
        when(_IF_EQUAL, numbers[column], _ERRNO | errno.EPERM)
    for numbers in _IGNORED.values():
        when(_IF_EQUAL, numbers[column], _ERRNO)
    # Its flags lie in memory, where a filter cannot look; the C library falls back to `clone`.
    when(_IF_EQUAL, _CLONE3[column], _ERRNO | errno.ENOSYS)
    call(_CLONE, 4)
    load(_FIRST)
    when(_IF_ANY_BIT, _NEW_NAMESPACES, _ERRNO | errno.EPERM)
    answer(_ALLOW)
    call(_SOCKET, 2 * len(_FAMILIES) + 2)
    load(_FIRST)
    for family in _FAMILIES:
        when(_IF_EQUAL, family, _ALLOW)
    answer(_ERRNO | errno.EAFNOSUPPORT)
    call(_IOCTL, 2 * len(_TERMINAL) + 2)
    load(_SECOND)
    for request in _TERMINAL:
        when(_IF_EQUAL, request, _ERRNO | errno.EPERM)
    answer(_ALLOW)
    answer(_ALLOW)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
