"""Train the template inside a track's budget: python train.py [FOLDER]

Writes weights.npz and ledger.jsonl to FOLDER (default: template-run), for `speedrun pack`.
"""

import sys
from pathlib import Path

import numpy as np

from speedrun.clock import Clock, Ledger
from speedrun.data.corpus import open_corpus
from speedrun.data.shards import open_shard
from speedrun.tracks.load import load_track

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "template-run")
folder.mkdir(parents=True)  # a ledger belongs to one run
track = load_track("pocket")
dataset = open_corpus(track.corpus, echo=print)
counts = np.zeros(dataset.vocab_size**2, np.int64)
clock = Clock(track.train_seconds, Ledger(folder / "ledger.jsonl"))
with clock.phase("train", on_budget=True, steps=1):
    for shard in map(open_shard, dataset.train_shards):
        pairs = shard[:-1].astype(np.int64) * dataset.vocab_size + shard[1:]
        counts += np.bincount(pairs, minlength=len(counts))
    small = np.minimum(counts, 65_535).astype(np.uint16).reshape(dataset.vocab_size, -1)
np.savez(folder / "weights.npz", counts=small)
print(f"{folder}: {counts.sum():,} pairs in {clock.ledger.budgeted_s:.1f} s")
