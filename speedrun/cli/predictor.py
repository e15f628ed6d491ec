"""`speedrun pack PREDICTOR.py`: a submission from a predictor of the user's own."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from speedrun.bpb import Score, score
from speedrun.clock import read_ledger
from speedrun.config import EvalConfig
from speedrun.data.corpus import open_corpus
from speedrun.data.dataset import Dataset, check_vocab
from speedrun.errors import ConfigError, PackError
from speedrun.files import atomic_path
from speedrun.hardware import describe_machine
from speedrun.pack.predictor import pack_predictor, read_arrays
from speedrun.pack.submission import CODE_NAME, MODEL_NAME, SubmissionFacts, write_submission
from speedrun.tracks.load import load_track
from speedrun.units import parse_size
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import Cell


def pack_own(
    source: Path,
    arrays: Path | None,
    ledger: Path | None,
    track: str,
    seed: int,
    out: Path | None,
    cap: str,
    codec: str,
    overrides: Sequence[str],
    data: Path | None,
    author: str,
    as_json: bool,
) -> None:
    """Bundle, score as the judge does, and write a submission; see `cli.pack` for the options.

    Raises
        ConfigError: an option is missing, or is for runs only.
        PackError: the module or its arrays cannot be packed, or are over the limit.
    """
    if ledger is None:
        raise ConfigError(
            f"{source}: a submission needs the ledger of its training; give --ledger FILE "
            "(speedrun.clock.Clock writes one, see submissions/template/train.py)"
        )
    limits = load_track(track)
    dataset = open_corpus(data or limits.corpus)
    evaluation = _evaluation(overrides)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"{source}: cannot be read: {error}") from error
    code, model = pack_predictor(
        text,
        read_arrays(arrays) if arrays else {},
        vocab_size=dataset.vocab_size,
        evaluation=evaluation,
        codec=codec or "best",
    )
    cap_bytes = parse_size(cap) if cap else limits.cap_bytes
    if (total := len(code) + len(model)) > cap_bytes:
        raise PackError(
            f"{MODEL_NAME} {len(model):,} + {CODE_NAME} {len(code):,} = {total:,} bytes, "
            f"{total - cap_bytes:,} over the limit of {cap_bytes:,}; store fewer or smaller arrays"
        )
    found, kind = _score(code, model, dataset, evaluation)
    phases = read_ledger(ledger)
    machine = describe_machine()
    folder = out or Path("submissions") / source.stem
    write_submission(
        folder,
        weights_bytes=model,
        bundle=code,
        facts=SubmissionFacts(
            name=source.stem,
            seed=seed,
            kind=kind,
            author=author or os.environ.get("SPEEDRUN_AUTHOR", "anonymous"),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            val_bpb=found.bpb,
            val_loss=found.nats_per_token,
            step_stop=sum(int(phase.details.get("steps") or 0) for phase in phases),
            wallclock_seconds=sum(phase.seconds for phase in phases if phase.on_budget),
            eval_time_seconds=found.seconds,
            model_params=0,
            hardware=machine["hardware"],
            pytorch_version=machine["torch"],
            data_fingerprint=dataset.fingerprint,
        ),
        logs={"ledger.jsonl": ledger},
        track=limits,
    )
    if as_json:
        facts = {
            "submission": str(folder),
            "bytes_model": len(model),
            "bytes_code": len(code),
            "bytes_total": total,
            "cap_bytes": cap_bytes,
            "val_bpb": found.bpb,
            "kind": kind,
        }
        print(json.dumps(facts, indent=2))
        return
    print(
        f"{folder}: model {len(model):,} + code {len(code):,} = {total:,} bytes, {kind}, "
        f"{found.bpb:.4f} bpb"
    )


def _score(
    code: bytes, model: bytes, dataset: Dataset, evaluation: EvalConfig
) -> tuple[Score, str]:
    """What the judge will measure, in the judge's own cell."""
    with tempfile.TemporaryDirectory(prefix="speedrun-pack-") as place:
        with atomic_path(Path(place) / "files") as folder:
            folder.mkdir()
            (folder / CODE_NAME).write_bytes(code)
            (folder / MODEL_NAME).write_bytes(model)
        with (
            Cell(Path(place) / "files") as cell,
            RemotePredictor(
                cell, [CODE_NAME, "predict", MODEL_NAME], budget_s=float("inf")
            ) as predictor,
        ):
            check_vocab(dataset, predictor.vocab_size)
            found = score(
                predictor,
                dataset.val_tokens(),
                num_bytes=dataset.val_raw_bytes,
                context=evaluation.context,
                stride=evaluation.stride,
                batch_windows=evaluation.batch_windows,
            )
            return found, predictor.kind


def _evaluation(overrides: Sequence[str]) -> EvalConfig:
    """How the judge asks, from `--set evaluation.key=N`."""
    values: dict[str, int] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        name = key.strip().removeprefix("evaluation.")
        if name == key.strip() or name not in EvalConfig.__dataclass_fields__:
            known = ", ".join(f"evaluation.{field}" for field in EvalConfig.__dataclass_fields__)
            raise ConfigError(f"--set {text}: a predictor has only {known}")
        try:
            values[name] = int(value)
        except ValueError:
            raise ConfigError(f"--set {text}: expected a whole number") from None
    return EvalConfig(**values)
