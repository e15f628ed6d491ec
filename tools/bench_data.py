"""Figures for the data room: preparing, killing, checking, comparing and loading.

    python tools/bench_data.py prepare [--workers 2]  MB/s, memory, ids as SentencePiece's own
    python tools/bench_data.py kills [--kills 5]      SIGKILL at random moments, then go on
    python tools/bench_data.py overlap                planted copies found, MB/s
    python tools/bench_data.py loader                 tokens/s, waiting at 50 ms a step

Text: `shared/data/technical-english.jsonl.zst` in a folder above this one, or SPEEDRUN_SHARED;
sp1024. Wall clock and processor seconds are both printed: on a machine that others use, only the
second says what the program costs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import zstandard

from speedrun.data.batches import Batches
from speedrun.data.feed import Feed
from speedrun.data.overlap import documents_of, find_overlap
from speedrun.data.pieces import SentencePieces
from speedrun.data.shards import open_shard, write_shard
from speedrun.data.tokenizer import Tokenizer
from speedrun.files import sha256_file

ROOT = Path(__file__).parents[1]
STEP_S = 0.05
SEQUENCE = 2048


def shared() -> Path:
    named = os.environ.get("SPEEDRUN_SHARED")
    for place in [Path(named)] if named else [p / "shared" / "data" for p in ROOT.parents]:
        if place.is_dir():
            return place
    sys.exit("no shared/data above this folder, and SPEEDRUN_SHARED is not set")


TEXT = "technical-english.jsonl.zst"
MODEL = "tokenizers/fineweb_1024_bpe.model"


def start(out: Path, workers: int) -> subprocess.Popen[bytes]:
    words = ["data", "prepare", shared() / TEXT, "--tokenizer", shared() / MODEL, "--out", out]
    words += ["--shard-tokens", 10_000_000, "--workers", workers, "--json"]
    command = [sys.executable, "-m", "speedrun", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read_texts() -> dict[str, str]:
    with (shared() / TEXT).open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        lines = map(json.loads, io.TextIOWrapper(stream, encoding="utf-8"))
        return {line["id"]: line["text"] for line in lines}


def resident_bytes(pid: int) -> int:
    """Memory of a process and all below it, shared pages counted once for each: an upper bound."""
    total, waiting = 0, [pid]
    while waiting:
        each = waiting.pop()
        try:
            task = Path(f"/proc/{each}/task/{each}/children").read_text()
            pages = int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue
        total += pages * resource.getpagesize()
        waiting += map(int, task.split())
    return total


def prepare(workers: int) -> None:
    texts = read_texts()
    size = sum(len(text.encode()) for text in texts.values())
    with tempfile.TemporaryDirectory() as folder:
        out, before = Path(folder, "d"), resource.getrusage(resource.RUSAGE_CHILDREN)
        begun_s, peak = time.perf_counter(), 0
        process = start(out, workers)
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.02)
        wall_s = time.perf_counter() - begun_s
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"prepared {size:,} bytes in {wall_s:.1f} s: {size / 1e6 / wall_s:.2f} MB/s")
        print(
            f"processor time {cpu_s:.1f} s: {size / 1e6 / cpu_s:.2f} MB/s a core, start included; "
            f"peak of all processes {peak / 2**20:,.0f} MiB"
        )
        command = [sys.executable, "-m", "speedrun", "data", "check", str(out), "--json"]
        begun_s = time.perf_counter()
        checked = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE).stdout)
        found = {line["id"]: line["status"] for line in checked["lines"]}
        print(f"check: {checked['status']} in {time.perf_counter() - begun_s:.1f} s: {found}")
        compare_ids(out, texts)


def compare_ids(out: Path, texts: dict[str, str]) -> None:
    """Every document's tokens in the shards against the library's own `encode`."""
    model = Tokenizer.load(out / "tokenizer.model")
    assert isinstance(model, SentencePieces)
    begun_s = time.process_time()
    own = {
        np.array(model.encode_slowly(text), dtype=np.uint16).tobytes() for text in texts.values()
    }
    slow_s = time.process_time() - begun_s
    begun_s = time.process_time()
    quick = model.encode_documents(list(texts.values()))
    quick_s = time.process_time() - begun_s
    same = sum(tokens[1:].tobytes() in own for tokens in quick)
    shards = sorted(out.glob("*.bin"))
    documents = [each for path in shards for each in documents_of(open_shard(path), model.bos_id)]
    equal = sum(each.tobytes() in own for each in documents)
    print(
        f"ids: {equal:,} of {len(documents):,} documents in the shards and {same:,} of "
        f"{len(texts):,} of the source are as SentencePiece encodes them; the library alone takes "
        f"{slow_s:.1f} s of a core, word by word {quick_s:.1f} s"
    )


def kills(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begun_s = time.perf_counter()
        assert start(whole, 2).wait() == 0
        wall_s = time.perf_counter() - begun_s
        dice, moments = random.Random(), []
        for _ in range(count):
            process, moment = start(killed, 2), dice.uniform(0.05, 0.6) * wall_s
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            work = killed.with_name(".killed.work")
            moments.append(f"{moment:.1f} s ({sum(1 for _ in work.glob('parts/*.part'))} parts)")
        # A build that came to its end between two kills has nothing to go on with.
        if not (killed / "manifest.json").exists():
            # The name is in the manifest, so it must be built as `killed` and compared but for it.
            assert start(killed, 2).wait() == 0
        names = sorted(path.name for path in whole.iterdir())
        assert names == sorted(path.name for path in killed.iterdir())
        differ = [name for name in names if sha256_file(whole / name) != sha256_file(killed / name)]
        print(f"killed after {', '.join(moments)} of {wall_s:.1f} s")
        print(f"{len(names)} files, different: {differ} (the manifest holds the folder's name)")


def overlap() -> None:
    """1 % of the validation documents planted whole, and as many with 5 % of words changed."""
    texts = read_texts()
    model = Tokenizer.load(shared() / MODEL)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "d")
        assert start(out, 2).wait() == 0
        train, val = sorted(out.glob("*_train_*.bin")), sorted(out.glob("*_val_*.bin"))
        entries = json.loads((out / "manifest.json").read_bytes())["shards"]
        ids = [name for entry in entries if entry["raw"] for name in entry["raw"]["document_ids"]]
        dice = random.Random(1)
        chosen = dice.sample(range(len(ids)), 2 * max(round(0.01 * len(ids)), 1))
        half = len(chosen) // 2
        vocabulary = sorted({word for text in list(texts.values())[:200] for word in text.split()})
        changed = [change_words(texts[ids[i]], vocabulary, dice) for i in chosen[half:]]
        planted = [*(texts[ids[i]] for i in chosen[:half]), *changed]
        extra = out / "shard_train_000099.bin"
        write_shard(extra, np.concatenate(model.encode_documents(planted)))
        size = sum(len(text.encode()) for text in texts.values())
        for name, shards in (("clean", train), ("planted", [*train, extra])):
            begun_s, cpu_s = time.perf_counter(), time.process_time()
            found = find_overlap(shards, val, bos_id=model.bos_id, bytes_per_token=2.26)
            wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
            print(
                f"{name}: exact {found.exact}, near {found.near}; {size / 1e6 / wall_s:.1f} MB/s, "
                f"{size / 1e6 / cpu_s:.1f} MB/s of a core"
            )
        print(f"planted were {sorted(chosen[:half])} whole and {sorted(chosen[half:])} changed")


def change_words(text: str, vocabulary: list[str], dice: random.Random) -> str:
    words = text.split(" ")
    for place in dice.sample(range(len(words)), max(round(0.05 * len(words)), 1)):
        words[place] = dice.choice(vocabulary)
    return " ".join(words)


def loader() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, dice = Path(folder, "x_train_000000.bin"), np.random.default_rng(0)
        write_shard(path, dice.integers(4, 1024, 100_000_000))
        batches = Batches(
            [path],
            sequence_length=SEQUENCE,
            tokens_per_step=256 * SEQUENCE,
            order="shuffled",
            vocab_size=1024,
        )
        for step in range(batches.num_windows // batches.sequences_per_step):  # page cache
            batches.rows(step, rank=0, world=1)
        for threads in (1, os.cpu_count() or 1):
            count_rows(batches, threads)
        for ahead in (0, 2):
            wait(batches, ahead)


def count_rows(batches: Batches, threads: int) -> None:
    steps = 200
    begun_s, cpu_s = time.perf_counter(), time.process_time()

    def read(first: int) -> None:
        for step in range(first, steps, threads):  # nobody keeps a batch after its step
            batches.rows(step, rank=0, world=1)

    workers = [threading.Thread(target=read, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    tokens = steps * batches.sequences_per_step * SEQUENCE
    wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    print(
        f"{threads} thread(s): {tokens / 1e6 / wall_s:,.0f} million tokens/s, "
        f"{2 * tokens / 1e9 / wall_s:.2f} GB/s of tokens, {2 * tokens / 1e9 / cpu_s:.2f} a core"
    )


def wait(batches: Batches, ahead: int) -> None:
    """A step of 50 ms that sleeps, as a CPU does while a GPU works."""
    with Feed(batches, ahead=ahead) as feed:
        for _ in range(3):
            feed.next()
        feed.waited_s, begun_s, steps = 0.0, time.perf_counter(), 100
        for _ in range(steps):
            feed.next()
            time.sleep(STEP_S)
        wall_s = time.perf_counter() - begun_s
    print(
        f"{'in the background' if ahead else 'when asked for'}: "
        f"{100 * feed.waited_s / wall_s:.3f} % of {1000 * wall_s / steps:.1f} ms a step spent "
        f"waiting for {batches.sequences_per_step} sequences of {SEQUENCE:,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["prepare", "kills", "overlap", "loader"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.workers)
    elif arguments.what == "kills":
        kills(arguments.kills)
    elif arguments.what == "overlap":
        overlap()
    else:
        loader()


if __name__ == "__main__":
    main()
