"""Protects people from bad input: one clear line, a documented exit code, nothing half written."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from speedrun.data.tokenizer import Tokenizer, train_tokenizer
from speedrun.files import sha256_file


def _tree(folder: Path) -> dict[str, str]:
    """Hash of every file, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _relist(submission: Path) -> None:
    """Make the manifest agree with the files, as a cheat would."""
    path = submission / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry |= {
            "bytes": (submission / name).stat().st_size,
            "sha256": sha256_file(submission / name),
        }
    path.write_text(json.dumps(manifest))


def _lose_shard(data: Path) -> str:
    (shard,) = data.glob("*_train_*.bin")
    shard.unlink()
    return f"cannot read shard {shard}: No such file"


def _truncate_shard(data: Path) -> str:
    (shard,) = data.glob("*_val_*.bin")
    shard.write_bytes(shard.read_bytes()[:-200])
    return "the file is cut or damaged"


def _lie_in_header(data: Path) -> str:
    (shard,) = data.glob("*_train_*.bin")
    content = bytearray(shard.read_bytes())
    content[8:12] = struct.pack("<i", 2_000_000_000)
    shard.write_bytes(content)
    return "header promises 2,000,000,000"


def _swap_tokenizer(data: Path) -> str:
    model = data / "tokenizer.model"
    train_tokenizer(["another text " * 50], 280, model)
    return "put the right tokenizer back"


def _lose_manifest(data: Path) -> str:
    (data / "manifest.json").unlink()
    return "manifest.json is missing"


@pytest.mark.parametrize(
    "harm",
    [_lose_shard, _truncate_shard, _lie_in_header, _swap_tokenizer, _lose_manifest],
)
def test_damaged_data_stops_a_run_before_it_starts(
    call, contest, tmp_path, harm: Callable[[Path], str]
):
    data, out = tmp_path / "data", tmp_path / "runs"
    shutil.copytree(contest.data, data)
    said = harm(data)
    found = call("run", "--track", contest.track, "--data", data, "--out", out)
    assert found.code == 2 and said in found.error()
    assert not out.exists()


def _run_refused(call, contest, tmp_path, *words) -> str:
    """The error of a run that is refused, after a look that it left no folder."""
    out = tmp_path / "runs"
    found = call("run", "--track", contest.track, "--out", out, *words)
    assert found.code == 2
    assert not out.exists() or list(out.iterdir()) == []
    return found.error()


def test_a_model_for_another_alphabet_is_refused(call, contest, tmp_path):
    vocab_size = Tokenizer.load(contest.data / "tokenizer.model").vocab_size
    said = _run_refused(call, contest, tmp_path, "--set", "model.vocab_size=512")
    assert "model.vocab_size = 512" in said and f"set model.vocab_size={vocab_size}" in said


def test_a_budget_below_one_step_is_refused(call, contest, tmp_path):
    said = _run_refused(call, contest, tmp_path, "--budget", "1ms")
    assert "a budget of 0.001 s does not hold one step" in said


def test_a_text_below_one_step_is_refused(call, contest, tmp_path):
    words = ("--set", "data.tokens_per_step=3_200_000")
    assert "one step needs 100,000" in _run_refused(call, contest, tmp_path, *words)


def test_a_folder_that_cannot_be_made_is_named(call, contest, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = call("run", "--track", contest.track, "--out", tmp_path / "file" / "runs")
    assert found.code == 2
    assert f"{tmp_path / 'file' / 'runs'}" in found.error() and "Not a directory" in found.err


def test_a_corpus_that_is_not_here_says_how_to_get_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDRUN_DATA", str(tmp_path))
    found = call("run", "--track", "golf-10min-16mb", "--out", tmp_path / "runs")
    assert found.code == 2 and "corpus golf-sp1024 is not here" in found.error()
    assert "SPEEDRUN_DATA" in found.err and list(tmp_path.iterdir()) == []


def test_a_full_disk_while_packing_leaves_the_older_submission(call, finished, monkeypatch):
    before = _tree(finished)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "submission.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    found = call("pack", finished)
    assert found.code == 2 and "No space left on device; free some space" in found.error()
    assert _tree(finished) == before


def test_a_full_disk_while_replacing_leaves_the_older_submission(call, finished, monkeypatch):
    before = _tree(finished)
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == ".submission.new":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    found = call("pack", finished)
    assert found.code == 2 and "cannot write" in found.error()
    assert _tree(finished) == before


def test_over_the_cap_names_the_bytes_and_leaves_the_older_submission(call, finished):
    before = _tree(finished)
    found = call("pack", finished, "--cap", "10kB", "--json")
    assert found.code == 2 and found.out == "" and _tree(finished) == before
    assert "over the limit of 10,000" in found.error() and "quant.matrix_bits" in found.err


def test_pack_never_replaces_a_folder_that_is_no_submission(call, finished, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("the only copy")
    found = call("pack", finished, "--out", tmp_path / "mine")
    assert found.code == 2 and "has files but is no submission" in found.error()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "the only copy"


def _cut_weights(run: Path) -> str:
    path = run / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return "weights.safetensors is damaged"


def _lose_weights(run: Path) -> str:
    (run / "weights.safetensors").unlink()
    return f"speedrun run --resume {run}"


def _damage_environment(run: Path) -> str:
    (run / "environment.json").write_text("[]")
    return "environment.json cannot be read"


def _edit_recipe(run: Path) -> str:
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("matrix_bits = 6", "matrix_bits = 60"))
    return "quant.matrix_bits = 60 is impossible"


def _break_ledger(run: Path) -> str:
    ledger = run / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[1:]))
    return "the chain is broken"


@pytest.mark.parametrize(
    "harm", [_cut_weights, _lose_weights, _damage_environment, _edit_recipe, _break_ledger]
)
def test_a_damaged_run_is_not_packed(call, finished, harm: Callable[[Path], str]):
    said = harm(finished)
    before = _tree(finished)
    found = call("pack", finished)
    assert found.code == 2 and said in found.error()
    assert _tree(finished) == before


def test_a_run_is_not_packed_or_resumed_with_other_data(call, contest, finished, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(contest.data, data)
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"other"'))
    before = _tree(finished)
    found = call("pack", finished, "--data", data)
    assert found.code == 2 and "was trained on data" in found.error()
    assert _tree(finished) == before
    (finished / "verdict.json").unlink()
    found = call("run", "--resume", finished, "--data", data)
    assert found.code == 2 and "was trained on data" in found.error()


def test_a_damaged_checkpoint_is_not_resumed(call, finished):
    for name in ("verdict.json", "weights.safetensors"):
        (finished / name).unlink()
    path = finished / "checkpoint" / "state.safetensors"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    found = call("run", "--resume", finished)
    assert found.code == 2 and f"{path}: damaged" in found.error()
    assert path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", None], ids=["empty", "foreign", "cut"]
)
def test_a_damaged_model_breaks_a_rule(call, contest, finished, content: bytes | None):
    model = finished / "submission" / "model.srz"
    model.write_bytes(model.read_bytes()[:-7] if content is None else content)
    words = ("verify", finished / "submission", "--track", contest.track, "--level", "static")
    found = call(*words)
    assert found.code == 1 and "FAIL hashes" in found.out and "FAIL container" in found.out
    _relist(finished / "submission")
    found = call(*words)
    assert found.code == 1 and "FAIL container: " in found.out
    assert "pack the weights again" in found.out and "FAIL hashes" not in found.out


def test_a_claim_that_is_not_what_is_measured_breaks_a_rule(call, contest, finished):
    path = finished / "submission" / "submission.json"
    claims = json.loads(path.read_text())
    measured = claims["val_bpb"]
    path.write_text(json.dumps(claims | {"val_bpb": measured - 0.01}))
    _relist(finished / "submission")
    found = call("verify", finished / "submission", "--track", contest.track, "--json")
    assert found.code == 1 and found.err == ""
    verdict = json.loads(found.out)
    broken = [result for result in verdict["results"] if result["status"] != "PASS"]
    assert [result["id"] for result in broken] == ["provenance", "metric"]
    assert verdict["measurement"]["bpb"] == pytest.approx(measured, abs=1e-6)


def test_a_submission_over_the_cap_breaks_a_rule(call, contest, finished, tmp_path):
    track = tmp_path / "small.toml"
    track.write_text(contest.track.read_text().replace("100_000", "20_000"))
    words = ("--track", track, "--level", "static", "--json")
    found = call("verify", finished / "submission", *words)
    broken = [each for each in json.loads(found.out)["results"] if each["status"] == "FAIL"]
    assert found.code == 1 and [each["id"] for each in broken] == ["size"]


def test_a_submission_for_a_track_of_its_own_asks_for_the_file(call, finished):
    found = call("verify", finished / "submission")
    assert found.code == 2 and "is for track 'tiny'; give its file with --track" in found.error()


def test_a_corpus_that_is_not_here_leaves_a_submission_undecided(call, contest, finished, tmp_path):
    track = tmp_path / "elsewhere.toml"
    track.write_text(contest.track.read_text().replace(str(contest.data), str(tmp_path / "none")))
    found = call("verify", finished / "submission", "--track", track)
    assert found.code == 2 and "UNDECIDED" in found.out and "is not here" in found.err
