"""What turns one byte string into a similar one: the little that a lossy tokenizer drops.

A patch keeps some bytes, leaves out some and puts in others; what is left after the last is kept.
Stored are, kind by kind because like things compress together: how many patches there are, all
numbers of bytes to keep, all to leave out, all to put in (LEB128), and all bytes to put in.
"""

from __future__ import annotations

from itertools import chain

from speedrun.errors import FormatError

_REACH = 48
"""How far behind a difference the two are looked at for a place where they agree again."""
_AGREEMENT = 8
"""So many equal bytes are agreement, not chance."""


def write_number(value: int) -> bytes:
    """A number of any size in 7-bit groups, low ones first (LEB128)."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_number(data: bytes, place: int) -> tuple[int, int]:
    """A number below 2^42 and the place behind it.

    Raises
        FormatError: the bytes end inside, or it is larger.
    """
    value = 0
    for shift in range(0, 42, 7):
        if place >= len(data):
            break
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    raise FormatError("a number is cut short or too large; the file is damaged")


def make_patches(found: bytes, wanted: bytes) -> bytes:
    """Patches that turn `found` into `wanted`; none if they are equal.

    Walks along both and looks a short way ahead after each difference. Long ones are found piece by
    piece, at the price of more bytes and never of a wrong result.
    """
    end = _common(found[::-1], 0, wanted[::-1], 0)
    found, wanted = found[: len(found) - end], wanted[: len(wanted) - end]
    patches: list[tuple[int, int, int]] = []
    added = bytearray()
    at, to, kept = 0, 0, 0  # places in found and wanted, and since when they have agreed
    while True:
        same = _common(found, at, wanted, to)
        at, to, kept = at + same, to + same, kept + same
        if at == len(found) and to == len(wanted):
            break
        left_out, put_in = _next_agreement(found, at, wanted, to)
        patches.append((kept, left_out, put_in))
        added += wanted[to : to + put_in]
        at, to, kept = at + left_out, to + put_in, 0
    if not patches:
        return b""
    columns = [len(patches), *chain.from_iterable(zip(*patches, strict=True))]
    return b"".join(map(write_number, columns)) + added


def apply_patches(found: bytes, patches: bytes, limit_bytes: int) -> bytes:
    """What `make_patches` was given as `wanted`; patches may come from a stranger.

    Raises
        FormatError: they do not fit, or the result would be longer than the limit.
    """
    if not patches:
        return found
    count, place = read_number(patches, 0)
    if 3 * count > len(patches) - place:
        raise FormatError(f"{count:,} patches do not fit into {len(patches):,} bytes")
    numbers = []
    for _ in range(3 * count):
        number, place = read_number(patches, place)
        numbers.append(number)
    keeps, leaves, puts = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
    if sum(keeps) + sum(leaves) > len(found) or sum(puts) != len(patches) - place:
        raise FormatError("patches do not fit the text; the file is damaged")
    if len(found) - sum(leaves) + sum(puts) > limit_bytes:
        raise FormatError(f"the text has more than {limit_bytes:,} bytes")
    result, at = bytearray(), 0
    for kept, left_out, put_in in zip(keeps, leaves, puts, strict=True):
        result += found[at : at + kept] + patches[place : place + put_in]
        at, place = at + kept + left_out, place + put_in
    return bytes(result + found[at:])


def _common(a: bytes, i: int, b: bytes, j: int) -> int:
    """How many bytes from two places on are equal."""
    done, step = 0, 64
    while step:
        end = min(step, len(a) - i - done, len(b) - j - done)
        if end > 0 and a[i + done : i + done + end] == b[j + done : j + done + end]:
            done += end
            step *= 2
        else:
            step = end // 2
    return done


def _next_agreement(found: bytes, at: int, wanted: bytes, to: int) -> tuple[int, int]:
    """Bytes to leave out and to put in until the two agree, or as far as they are looked at."""
    ahead = found[at : at + _REACH + _AGREEMENT]
    best = (min(_REACH, len(found) - at), min(_REACH, len(wanted) - to))
    for put_in in range(min(_REACH, len(wanted) - to - _AGREEMENT) + 1):
        left_out = ahead.find(wanted[to + put_in : to + put_in + _AGREEMENT])
        if left_out >= 0 and left_out + put_in < sum(best):
            best = (left_out, put_in)
    return best
