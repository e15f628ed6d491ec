"""The tokenizer that a build trains for itself, on documents that cannot become validation."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from speedrun.data.job import Job
from speedrun.data.parts import first_bytes
from speedrun.data.sources import Document, RecordError, parse, read_blocks
from speedrun.data.tokenizer import Tokenizer, train_tokenizer


def train_for(job: Job, vocab_size: int, path: Path, echo: Callable[[str], object]) -> Tokenizer:
    """Train a tokenizer on documents that cannot be validation; once for a job."""
    if path.exists():
        return Tokenizer.load(path)
    echo(f"{job.name}: training a tokenizer of {vocab_size:,} pieces")
    # Who is validation is known only after filters and duplicates: leave out more than enough.
    count = 2 * (job.layout.validation_count or 0) + (100 if job.layout.validation_count else 0)
    if job.layout.validation_count is None:
        limit = int(job.layout.validation_frac * 2**64)
    elif job.layout.order == "stream":
        limit = 0
    else:
        keys = (first_bytes(name.encode()) for name, _ in _documents(job, 0))
        limit = (heapq.nsmallest(count, keys) or [0])[-1] + 1
        count = 0
    skipped = count if job.layout.order == "stream" else 0
    texts = (text for name, text in _documents(job, skipped) if first_bytes(name.encode()) >= limit)
    return train_tokenizer(texts, vocab_size, path)


def _documents(job: Job, skipped: int) -> Iterator[Document]:
    """Readable, filtered documents, a block of each source in turn, without the first of each."""
    encoding = job.encoding
    streams = [
        read_blocks(source, text_key=encoding.text_key, id_key=encoding.id_key)
        for source in job.sources
    ]
    left = [skipped] * len(streams)
    while streams:
        for i, stream in reversed(list(enumerate(streams))):
            block = next(stream, None)
            if block is None:
                del streams[i], left[i]
                continue
            for record in block:
                try:
                    name, text = parse(record, text_key=encoding.text_key, id_key=encoding.id_key)
                except RecordError:
                    continue  # counted, or an error, when it is encoded
                if encoding.filters.reason(text, text.encode()):
                    continue
                left[i] -= 1
                if left[i] < 0:
                    yield name, text
