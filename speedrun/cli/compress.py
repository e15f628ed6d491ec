"""`speedrun compress` and `decompress`: files by the predictions of a submission."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from speedrun.cli.screen import say_aside

if TYPE_CHECKING:
    from speedrun.verify.compression import Model, Progress

SUFFIX = ".lm"

_MODEL = typer.Option(..., metavar="SUBMISSION", help="Submission folder: the model.")
_DATA = typer.Option(
    None, metavar="FOLDER", help="Dataset with its tokenizer. Default: its track's corpus."
)
_ALLOW = typer.Option(
    False, "--allow-unsandboxed", help="Run the submission where bubblewrap does not work."
)
_JSON = typer.Option(False, "--json", help="Print the result as JSON.")


def compress(
    file: Path = typer.Argument(metavar="FILE", help="Any file; text is what gets small."),
    model: Path = _MODEL,
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="OUT", help=f"Compressed file. Default: FILE{SUFFIX}."
    ),
    data: Path | None = _DATA,
    streams: int = typer.Option(
        1, min=1, max=256, help="Parts coded side by side: quicker, and a little larger."
    ),
    no_check: bool = typer.Option(
        False, "--no-check", help="Do not decompress and compare before OUT is written."
    ),
    allow_unsandboxed: bool = _ALLOW,
    as_json: bool = _JSON,
) -> None:
    """Compress a file with a submission's predictions; nothing is lost.

    The same submission, tokenizer and kind of machine give it back.
    """
    from speedrun.errors import FormatError
    from speedrun.files import write_atomic
    from speedrun.verify.compression import compress, decompress

    target, began = _target(out, file.with_name(file.name + SUFFIX)), time.perf_counter()
    text = _read(file)
    codec = _open(model, data, allow_unsandboxed)
    with _bar() as show:
        made = compress(text, codec, streams=streams, progress=show("coding"))
        if not no_check and decompress(made.data, codec, progress=show("checking")) != text:
            raise FormatError(f"{file} does not come back; nothing was written")
    write_atomic(target, made.data)
    bits_per_byte = 8 * len(made.data) / len(text) if text else None
    if as_json:
        facts = {
            "out": str(target),
            "bytes_in": len(text),
            "bytes_out": len(made.data),
            "bits_per_byte": bits_per_byte,
            "tokens": made.num_tokens,
            "code_bytes": made.code_bytes,
            "patch_bytes": made.patch_bytes,
            "zstd_bytes": made.zstd_bytes,
            "is_checked": not no_check,
            "seconds": round(time.perf_counter() - began, 3),
        }
        print(json.dumps(facts, indent=2))
        return
    rate = "" if bits_per_byte is None else f", {bits_per_byte:.3f} bits per byte"
    print(f"{target}: {len(made.data):,} of {len(text):,} bytes{rate}")
    if made.num_tokens:
        share = len(made.data) / made.zstd_bytes
        print(f"zstd -22 needs {made.zstd_bytes:,}; this is {share:.0%} of it")
    else:
        print("no text for this model: kept as zstd -22")


def decompress(
    file: Path = typer.Argument(metavar="FILE", help="What `speedrun compress` wrote."),
    model: Path = _MODEL,
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="OUT", help=f"The file again. Default: FILE less {SUFFIX}."
    ),
    data: Path | None = _DATA,
    allow_unsandboxed: bool = _ALLOW,
    as_json: bool = _JSON,
) -> None:
    """Give back a file that `speedrun compress` made, with the same submission."""
    from speedrun.errors import ConfigError
    from speedrun.files import write_atomic
    from speedrun.verify.compression import decompress

    if out is None and file.suffix != SUFFIX:
        raise ConfigError(f"{file} does not end in {SUFFIX}; name the file to write with --out")
    target, began = _target(out, file.with_suffix("")), time.perf_counter()
    packed = _read(file)
    codec = _open(model, data, allow_unsandboxed)
    with _bar() as show:
        text = decompress(packed, codec, progress=show("decoding"))
    write_atomic(target, text)
    if as_json:
        facts = {
            "out": str(target),
            "bytes_in": len(packed),
            "bytes_out": len(text),
            "seconds": round(time.perf_counter() - began, 3),
        }
        print(json.dumps(facts, indent=2))
        return
    print(f"{target}: {len(text):,} bytes, as they were")


def _target(out: Path | None, default: Path) -> Path:
    """Where to write; only a name that was given is written over."""
    from speedrun.errors import OutputError

    if out is None and default.exists():
        raise OutputError(f"{default} exists; name it with --out to write over it")
    return out or default


def _read(file: Path) -> bytes:
    from speedrun.errors import DataError
    from speedrun.verify.compression import MAX_BYTES

    try:
        if file.stat().st_size > 2 * MAX_BYTES:
            raise DataError(f"{file} has {file.stat().st_size:,} bytes; split it, or use zstd")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _open(submission: Path, data: Path | None, allow_unsandboxed: bool) -> Model:
    """The submission as a compressor, each time in a cell of its own.

    Raises
        SubmissionError: it cannot be used, or names no shipped track and no `data` is given.
        DataError: the dataset is not here, or damaged.
    """
    from speedrun.cli.verify import claimed_track
    from speedrun.data.corpus import open_corpus
    from speedrun.tracks.load import load_track
    from speedrun.verify.compression import open_model

    corpus = data or load_track(claimed_track(submission)).corpus
    tokenizer = open_corpus(corpus, echo=say_aside).tokenizer()
    return open_model(submission, tokenizer, allow_unsandboxed=allow_unsandboxed)


@contextmanager
def _bar() -> Iterator[Callable[[str], Progress | None]]:
    """On a terminal, a bar for each phase that is named; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda phase: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn())
    with Bars(
        *columns, TextColumn("tokens"), TimeRemainingColumn(), console=Console(stderr=True)
    ) as bars:

        def show(phase: str) -> Progress:
            task = bars.add_task(phase, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield show
