"""The folder that is handed in: whole or absent, listed file by file, counted exactly."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from speedrun.errors import SubmissionError
from speedrun.files import atomic_path, sha256_file
from speedrun.tracks.load import Track

SCHEMA_VERSION = 1
CODE_NAME = "train_gpt.py"
MODEL_NAME = "model.srz"
MANIFEST_NAME = "manifest.json"
_MANIFEST_LIMIT_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionFacts:
    """What a submission claims and where it comes from; written to `submission.json`."""

    name: str
    """Of the recipe or the predictor."""
    seed: int
    author: str
    date: str
    """`YYYY-MM-DD`, or ISO 8601 with `Z`."""
    val_bpb: float
    """The claim: bits per byte as the track scores."""
    val_loss: float
    """Nats per token of the same evaluation."""
    step_stop: int
    """Optimizer steps taken."""
    wallclock_seconds: float
    """Training seconds on the budget."""
    eval_time_seconds: float
    """Seconds of the evaluation behind the claim."""
    model_params: int
    """Parameters before packing."""
    hardware: str
    pytorch_version: str
    data_fingerprint: str
    """Of the corpus that was trained on and scored."""
    kind: str = "fixed"
    """`fixed`, or `adaptive`: it learns from what was scored."""
    github_id: str = ""
    blurb: str = ""
    """What is new, in a sentence or two."""
    pre_quant_val_bpb: float | None = None
    """Score of the weights before rounding, if measured."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A line of the manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SizeReport:
    """What counts against a track's limit, in decimal bytes on disk."""

    code: int
    model: int

    @property
    def total(self) -> int:
        """Code and model together: what the limit is compared with."""
        return self.code + self.model


def write_submission(
    out: Path,
    *,
    weights_bytes: bytes,
    bundle: bytes,
    facts: SubmissionFacts,
    logs: dict[str, Path],
    track: Track,
) -> SizeReport:
    """Write a submission folder; `logs` are copied to `logs/` under the names that are given.

    Raises
        SubmissionError: a log is missing or oddly named, or a fact is not a finite number.
        OutputError: the folder cannot be written or exists; then nothing is left behind.
    """
    size = SizeReport(len(bundle), len(weights_bytes))
    claims = _claims(facts, size, track)
    files = {
        CODE_NAME: bundle,
        MODEL_NAME: weights_bytes,
        "README.md": _readme(facts, size, track).encode(),
        "submission.json": to_json(claims, "submission.json"),
    }
    for name, path in logs.items():
        if not name or PurePosixPath(name).name != name or name.startswith(".") or "\\" in name:
            raise SubmissionError(f"log {name!r} needs a plain file name, without folders or dots")
        try:
            files[f"logs/{name}"] = path.read_bytes()
        except OSError as error:
            raise SubmissionError(f"log {name!r} cannot be read: {error}") from error
    with atomic_path(out) as folder:
        (folder / "logs").mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        write_manifest(folder)
    return size


def write_manifest(folder: Path) -> None:
    """List every file below a folder, with its bytes and hash, in the folder's `manifest.json`."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    listed = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in names
        if name != MANIFEST_NAME
    }
    values = {"schema_version": SCHEMA_VERSION, "files": listed}
    (folder / MANIFEST_NAME).write_bytes(to_json(values, MANIFEST_NAME))


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """What the manifest lists, by name relative to the folder; nothing of it is compared yet.

    Raises
        SubmissionError: missing, too large, of another version, or a name leaves the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.lstat().st_size > _MANIFEST_LIMIT_BYTES:
            raise SubmissionError(f"{MANIFEST_NAME} is larger than {_MANIFEST_LIMIT_BYTES:,} bytes")
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SubmissionError(f"{MANIFEST_NAME} cannot be read: {error}") from error
    match values:
        case {"schema_version": 1, "files": dict(files)}:
            return {name: _entry(name, entry) for name, entry in files.items()}
    raise SubmissionError(f"{MANIFEST_NAME} needs schema_version {SCHEMA_VERSION} and files")


def counted_bytes(folder: Path, track: Track) -> SizeReport:
    """Bytes that count on a track: the code in `train_gpt.py` and the weights in `model.srz`.

    Raises
        SubmissionError: one of them is missing or not a plain file.
    """
    sizes = []
    for name in (CODE_NAME, MODEL_NAME):
        try:
            status = (folder / name).lstat()
        except OSError as error:
            raise SubmissionError(f"{track.name}: {name} cannot be counted: {error}") from error
        # A link would count as the few bytes of its target's name.
        if not stat.S_ISREG(status.st_mode):
            raise SubmissionError(f"{track.name}: {name} is not a plain file; put the file itself")
        sizes.append(status.st_size)
    return SizeReport(*sizes)


def _claims(facts: SubmissionFacts, size: SizeReport, track: Track) -> dict[str, Any]:
    """`submission.json`: the keys that the field uses most, plus what a judge needs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "author": facts.author,
        "github_id": facts.github_id,
        "name": facts.name,
        "blurb": facts.blurb,
        "date": facts.date,
        "track": track.name,
        "track_version": track.version,
        "val_bpb": facts.val_bpb,
        "val_loss": facts.val_loss,
        "pre_quant_val_bpb": facts.pre_quant_val_bpb,
        "bytes_total": size.total,
        "bytes_code": size.code,
        "bytes_model": size.model,
        "seed": facts.seed,
        "kind": facts.kind,
        "step_stop": facts.step_stop,
        "wallclock_seconds": facts.wallclock_seconds,
        "eval_time_seconds": facts.eval_time_seconds,
        "model_params": facts.model_params,
        "hardware": facts.hardware,
        "pytorch_version": facts.pytorch_version,
        "data_fingerprint": facts.data_fingerprint,
    }


def _readme(facts: SubmissionFacts, size: SizeReport, track: Track) -> str:
    return f"""# {facts.name}, seed {facts.seed}

{facts.blurb}

| | |
|---|---|
| Track | {track.name}, rules version {track.version} |
| Score | {facts.val_bpb:.6f} bits per byte ({facts.val_loss:.6f} nats per token) |
| Size | {size.total:,} of {track.cap_bytes:,} bytes: code {size.code:,}, weights {size.model:,} |
| Training | {facts.step_stop:,} steps in {facts.wallclock_seconds:.1f} s on {facts.hardware} |
| Parameters | {facts.model_params:,} |
| Author | {facts.author}, {facts.date} |

Judge it with `speedrun verify .`

Its code answers a judge on stdin and stdout, and needs no `speedrun` for it:

    python {CODE_NAME} predict {MODEL_NAME}

`{CODE_NAME}` is a zip with minified modules; `python -m zipfile -l {CODE_NAME}` lists it.
"""


def to_json(values: dict[str, Any], name: str) -> bytes:
    """The bytes of a JSON file of ours.

    Raises
        SubmissionError: a number is not finite.
    """
    try:
        return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise SubmissionError(f"{name}: a number is not finite: {error}") from error


def _entry(name: str, entry: object) -> FileEntry:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and str(path) == name
    if not plain or path.is_absolute() or ".." in path.parts or name == ".":
        raise SubmissionError(f"{MANIFEST_NAME} lists {name!r}, which is not a path in the folder")
    match entry:
        case {"bytes": int(size), "sha256": str(digest)}:
            return FileEntry(size, digest)
    raise SubmissionError(f"{MANIFEST_NAME}: {name!r} needs bytes and sha256")
