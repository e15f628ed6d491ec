"""Cheats with the files of a submission: each is complete, runs, and is caught by name."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from speedrun.config import EvalConfig, ModelConfig, RunConfig
from speedrun.pack.container import MAGIC, Section, write_container
from speedrun.verify import contents, rules
from speedrun.verify.verdict import Status
from tests.cheats.conftest import EVALUATION, Court, failed, read_predictor, relist

HONEST = read_predictor("honest/pair_counts")


@pytest.fixture(name="folder")
def folder_fixture(court: Court, tmp_path: Path) -> Path:
    """An honest submission to do harm to."""
    return court.submit(HONEST, out=tmp_path / "submission", claim=1.0)


def test_over_the_cap_by_one_byte(court: Court, folder: Path) -> None:
    total = sum((folder / name).stat().st_size for name in ("train_gpt.py", "model.srz"))
    track = dataclasses.replace(court.track, cap_bytes=total)
    assert "size" not in failed(court.judge(folder, track=track, level="static"))
    track = dataclasses.replace(court.track, cap_bytes=total - 1)
    assert "size" in failed(court.judge(folder, track=track, level="static"))


def test_bytes_moved_into_a_file_that_is_not_counted(court: Court, folder: Path) -> None:
    (folder / "weights2.bin").write_bytes(bytes(1_000_000))
    assert "weights2.bin" in failed(court.judge(folder, level="static"))["files"]
    relist(folder)
    # Listed, it is a file like a log: allowed, and not there when the predictor runs.
    honest = court.submit(HONEST, out=folder.with_name("honest"))
    claim = json.loads((honest / "submission.json").read_text())
    code = "import os\n" + HONEST.replace(
        "    return Pairs",
        "    assert sorted(os.listdir()) == ['model.srz', 'train_gpt.py']\n    return Pairs",
    )
    other = court.submit(
        code, out=folder.with_name("other"), claim=claim["val_bpb"], val_loss=claim["val_loss"]
    )
    (other / "weights2.bin").write_bytes(bytes(1_000_000))
    relist(other)
    assert failed(court.judge(other, level="score")) == {}


def test_a_hidden_file(court: Court, folder: Path) -> None:
    (folder / ".weights").write_bytes(b"x")
    relist(folder)
    assert ".weights (hidden)" in failed(court.judge(folder))["files"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../elsewhere", "/dev/zero"])
def test_a_link_out_of_the_folder(court: Court, folder: Path, target: str) -> None:
    (folder / "model.srz").unlink()
    (folder / "model.srz").symlink_to(target)
    assert "model.srz (not a plain file)" in failed(court.judge(folder))["files"]


def test_a_name_in_the_manifest_that_leaves_the_folder(court: Court, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "not a path in the folder" in failed(court.judge(folder, level="static"))["files"]


def test_a_model_file_that_unpacks_to_more_memory_than_there_is(court: Court, folder: Path) -> None:
    size = 1 << 40
    data = bytearray(write_container([Section({"a": np.zeros(64, np.int8)}, "zstd")], {}))
    head = json.dumps(
        {
            "arrays": [["a", "i1", [size], 0]],
            "meta": {},
            "sections": [["zstd", size, 17]],
        },
        separators=(",", ":"),
    ).encode()
    import hashlib
    import struct

    body = struct.pack("<8sHII", MAGIC, 1, len(head), len(head)) + head + bytes(17)
    (folder / "model.srz").write_bytes(body + hashlib.sha256(body).digest())
    relist(folder)
    assert data[:8] == MAGIC
    assert "would unpack to 1,099,511,627,776" in failed(court.judge(folder))["container"]


def test_code_that_unpacks_to_more_than_can_be_read(
    court: Court, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "UNPACKED_LIMIT_BYTES", 1 << 24)
    bomb = zstandard.compress(bytes(1 << 25))
    target = io.BytesIO((folder / "train_gpt.py").read_bytes())
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bomb)
    (folder / "train_gpt.py").write_bytes(target.getvalue())
    relist(folder)
    verdict = court.judge(folder)
    assert verdict.status is not Status.PASS
    found = next(result for result in verdict.results if result.id == "contents")
    assert (found.status, "unpack to more" in found.evidence) == (Status.UNDECIDED, True)


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("unpickled",)


def test_a_pickle_in_place_of_the_model(court: Court, folder: Path) -> None:
    (folder / "model.srz").write_bytes(pickle.dumps(_Trap()))
    relist(folder)
    assert "not a model.srz" in failed(court.judge(folder))["container"]


def test_a_pickle_inside_the_container(court: Court, tmp_path: Path) -> None:
    blob = np.frombuffer(pickle.dumps({"counts": [_Trap()] * 3}), np.uint8)
    arrays = {"counts": court.pair_counts(), "blob": blob}
    folder = court.submit(HONEST, arrays, out=tmp_path / "submission")
    assert "pickle" in failed(court.judge(folder))["contents"]


def test_weights_swapped_after_hashing(court: Court, folder: Path) -> None:
    other = court.submit(
        HONEST, {"counts": court.pair_counts() * 2}, out=folder.with_name("other"), claim=1.0
    )
    (folder / "model.srz").write_bytes((other / "model.srz").read_bytes())
    assert "model.srz" in failed(court.judge(folder))["hashes"]


def test_weights_swapped_while_the_judge_looks_at_something_else(
    court: Court, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = court.submit(
        HONEST, {"counts": court.pair_counts() * 2}, out=folder.with_name("other"), claim=1.0
    )
    compare = rules.data

    def swap(*arguments: object) -> object:
        (folder / "model.srz").write_bytes((other / "model.srz").read_bytes())
        return compare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rules, "data", swap)
    assert "while it was judged" in failed(court.judge(folder))["hashes"]


def test_a_network_declared_that_cannot_have_run(court: Court, folder: Path) -> None:
    run = RunConfig(
        name="test/giant",
        model=ModelConfig(
            vocab_size=court.dataset.vocab_size, width=65_536, num_heads=64, num_layers=96,
            num_kv_heads=64, mlp_hidden=262_144,
        ),
        evaluation=EvalConfig(**dataclasses.asdict(EVALUATION)),
    )  # fmt: skip
    model = write_container(
        [Section({"counts": court.pair_counts()}, "zstd")], {"run": run.to_dict()}
    )
    (folder / "model.srz").write_bytes(model)
    relist(folder)
    assert "were not computed by this network" in failed(court.judge(folder))["speed"]


def test_time_that_the_ledger_books_elsewhere(court: Court, folder: Path) -> None:
    ledger = folder / "logs" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("12.5", "75.0"))
    relist(folder)
    assert "75.000 s" in next(
        r.measured
        for r in court.judge(folder, level="static").results
        if r.id == "training-time" and r.status is Status.FAIL
    )


def test_a_claim_of_nothing(court: Court, folder: Path) -> None:
    for value in (0.0, -1.0, math.nan, True, "0.9"):
        claims = json.loads((folder / "submission.json").read_text())
        claims["val_bpb"] = value
        (folder / "submission.json").write_text(json.dumps(claims))
        relist(folder)
        verdict = court.judge(folder, level="score")
        assert {"claims", "metric"} & set(failed(verdict)), value
