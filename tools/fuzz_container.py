"""Mutate small model.srz files and read them: each is decoded or refused by name, within bounds.

    python tools/fuzz_container.py [--files 100000] [--seed 0]

Seeds hold every dtype and codec, and weights with all their parts. Most mutants get a digest that
fits, and many a header that is canonical again, so that they reach the code behind both checks.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import json
import random
import resource
import struct
import time
import tracemalloc

import numpy as np
import torch

from speedrun.config import QuantConfig
from speedrun.errors import FormatError
from speedrun.pack.container import Section, read_container, write_container
from speedrun.pack.weights import Rows, round_weights, unpack_weights, write_weights
from speedrun.quant.low_rank import low_rank

RAW_LIMIT_BYTES = 1 << 20
MEMORY_BOUND_BYTES = 24 * RAW_LIMIT_BYTES + (64 << 20)
"""What reading may take: some copies of the declared bytes, and the range coder's tables."""
_HEAD = struct.Struct("<8sHII")


@functools.cache
def seeds() -> list[bytes]:
    """Small, valid files of every kind."""
    rng = np.random.default_rng(0)
    found = []
    for codec in ("raw", "zstd", "lzma", "brotli", "ans"):
        codes = np.clip(np.rint(rng.standard_normal((24, 40)) * 5), -31, 31).astype(np.int8)
        sections = [Section({"codes": codes, "more": codes[:3]}, codec)]
        if codec == "zstd":
            for dtype in ("?", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
                array = rng.integers(0, 2, (3, 5)).astype(dtype)
                sections.append(Section({f"array {dtype}": array, f"none {dtype}": array[:0]}))
        found.append(write_container(sections, {"name": codec, "list": [1, 2.5, None]}))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "tok_emb.weight": torch.randn(40, 24, generator=generator),
        "gain": torch.ones(9),
        "table": torch.arange(30, dtype=torch.int16),
    }
    rounded = round_weights(weights, QuantConfig(small_tensor_limit=64))
    rows = rounded["tok_emb.weight"]
    assert isinstance(rows, Rows)
    factors = low_rank(torch.randn(40, 24, generator=generator), 2)._asdict()
    rounded["tok_emb.weight"] = rows._replace(columns=torch.ones(24).half(), factors=factors)
    found += [write_weights(rounded, codec, {"run": {"seed": 1}}) for codec in ("ans", "best")]
    return found


def mutate(data: bytes, choose: random.Random) -> bytes:
    """One damaged copy."""
    mutant = bytearray(data)
    if choose.random() < 0.35 and (text := _plain_header(data)) is not None:
        mutant = bytearray(_with_header(data, _mutate_header(json.loads(text), choose)))
    else:
        for _ in range(choose.choice((1, 1, 1, 2, 5, 20))):
            at = choose.randrange(len(mutant))
            match choose.randrange(6):
                case 0:
                    mutant[at] ^= 1 << choose.randrange(8)
                case 1:
                    mutant[at] = choose.choice((0, 1, 127, 128, 255))
                case 2:
                    del mutant[at : at + choose.randrange(1, 9)]
                case 3:
                    mutant[at:at] = choose.randbytes(choose.randrange(1, 9))
                case 4:
                    other = choose.randrange(len(mutant))
                    mutant[at : at + 8] = mutant[other : other + 8]
                case 5:
                    del mutant[max(at, 18) :]
            mutant = mutant or bytearray(data)
    if choose.random() < 0.9:
        body = bytes(mutant[:-32])
        return body + hashlib.sha256(body).digest()
    return bytes(mutant)


def _plain_header(data: bytes) -> bytes | None:
    _, _, stored, length = _HEAD.unpack_from(data)
    text = data[_HEAD.size : _HEAD.size + stored]
    if stored == length:
        return text
    import zstandard

    return zstandard.ZstdDecompressor().decompress(text)


def _with_header(data: bytes, values: object) -> bytes:
    _, version, stored, _ = _HEAD.unpack_from(data)
    magic, body = data[:8], data[_HEAD.size + stored :]
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return _HEAD.pack(magic, version, len(text), len(text)) + text + body


def _mutate_header(values: dict, choose: random.Random) -> dict:
    numbers = (0, 1, 2, 3, 7, 255, 256, 65_535, 1 << 20, 1 << 31, (1 << 48) - 1, 1 << 48, -1)
    words = ("raw", "zstd", "lzma", "brotli", "ans", "i1", "f2", "b1", "f8", "", "x:codes")
    for _ in range(choose.choice((1, 1, 2, 3))):
        entry = choose.choice(values["arrays"] + values["sections"])
        at = choose.randrange(len(entry))
        match choose.randrange(5):
            case 0:
                entry[at] = choose.choice(numbers)
            case 1:
                entry[at] = choose.choice(words)
            case 2:
                entry[at] = [choose.choice(numbers) for _ in range(choose.randrange(4))]
            case 3 if isinstance(entry[at], int):
                entry[at] += choose.choice((-1, 1))
            case _:
                values["arrays"].reverse()
    return values


def check(mutant: bytes) -> str:
    """Read one file; returns "decoded" or the beginning of what it was refused for."""
    try:
        unpack_weights(mutant, raw_limit_bytes=RAW_LIMIT_BYTES)
        return "decoded as weights"
    except FormatError as weights_error:
        try:
            read_container(mutant, raw_limit_bytes=RAW_LIMIT_BYTES)
            return "decoded as arrays"
        except FormatError:
            return str(weights_error)


def limit_memory() -> None:
    """From here on the process cannot reserve more than the bound beyond what it has."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        now_bytes = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MEMORY_BOUND_BYTES, hard))


def fuzz(files: int, seed: int, *, watch_every: int = 0) -> tuple[dict[str, int], int, float]:
    """Read so many mutants: (how often each outcome, most bytes at once, slowest seconds of CPU).

    Bytes are traced, which is slow, for one file in `watch_every`.
    """
    choose, originals = random.Random(seed), seeds()
    outcomes: collections.Counter[str] = collections.Counter()
    most_bytes, slowest_s = 0, 0.0
    for original in originals:
        assert check(original).startswith("decoded")
    for number in range(files):
        mutant = mutate(choose.choice(originals), choose)
        is_watched = watch_every > 0 and number % watch_every == 0
        if is_watched:
            tracemalloc.start()
        started = time.process_time()
        outcome = check(mutant)
        if is_watched:
            most_bytes = max(most_bytes, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        else:
            slowest_s = max(slowest_s, time.process_time() - started)
        outcomes["".join(" " if c.isdigit() else c for c in outcome)[:40]] += 1
    return dict(outcomes), most_bytes, slowest_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    seeds()  # what has to be imported is in memory before it is limited
    limit_memory()
    outcomes, most_bytes, slowest_s = fuzz(arguments.files, arguments.seed, watch_every=100)
    for outcome, count in sorted(outcomes.items(), key=lambda pair: -pair[1])[:25]:
        print(f"{count:>8,}  {outcome}")
    decoded = sum(count for outcome, count in outcomes.items() if outcome.startswith("decoded"))
    print(
        f"{arguments.files:,} files in {time.perf_counter() - started:.0f} s: {decoded:,} decoded, "
        f"the rest refused by name; within {MEMORY_BOUND_BYTES:,} bytes (most traced "
        f"{most_bytes:,}), slowest {slowest_s:.3f} s of CPU"
    )
    if most_bytes > MEMORY_BOUND_BYTES:
        raise SystemExit(f"more than the bound of {MEMORY_BOUND_BYTES:,} bytes")


if __name__ == "__main__":
    main()
