"""Protects provenance: what belongs together passes, what was exchanged is named with its line.

The submission is written as the trainer and the packer write it, with numbers worked by hand, so
that a cheat is one edit of it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest

import speedrun
from speedrun.clock import Ledger, Phase
from speedrun.config import EvalConfig, ModelConfig, RunConfig, TrainConfig
from speedrun.errors import FormatError
from speedrun.pack.bundle import SOURCES_LIMIT_BYTES, build_bundle, read_bundle
from speedrun.pack.container import Section, write_container
from speedrun.pack.predictor import pack_predictor
from speedrun.pack.submission import SubmissionFacts, write_submission
from speedrun.tracks.load import Track, load_track
from speedrun.train.log import RunLog
from speedrun.verify.provenance import provenance
from speedrun.verify.trainlog import read_train_log
from speedrun.verify.verdict import RuleResult, Status

RUN = RunConfig(
    name="test/run", seed=7, model=ModelConfig(width=64),
    train=TrainConfig(budget_s=60.0, log_every_steps=20, warmup_steps=3),
)  # fmt: skip
TRACK = Track(
    name="test", version=1, summary="", train_seconds=60.0, eval_seconds=60.0, cap_bytes=100_000,
    corpus="none", recipe="none", hardware="any",
)  # fmt: skip
STEP_S = 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of a bundle that is minified in a moment; only its recipe matters here."""
    folder = tmp_path_factory.mktemp("sources") / "speedrun"
    folder.mkdir()
    for name in ("config.py", "errors.py"):
        shutil.copy(Path(speedrun.__file__).with_name(name), folder / name)
    (folder / "__init__.py").write_text("")
    (folder / "standalone.py").write_text(
        "from speedrun.config import RunConfig\ndef main(run: RunConfig): ...\n"
    )
    return folder.parent


@dataclasses.dataclass
class Story:
    """An honest run, told by its files."""

    folder: Path
    root: Path

    def write(
        self, name: str = "submission", *, run: RunConfig = RUN, steps: int = 85,
        bpb: float = 1.23456789, **changes: Any,
    ) -> Path:  # fmt: skip
        """A submission of a run of so many steps; `changes` go into its facts."""
        place = self.folder / f"run of {name}"
        place.mkdir()
        packed, bundle = self.model(run), build_bundle(run, root=self.root)
        log, seconds = RunLog(place), steps * STEP_S
        log.line(
            f"train_batch_tokens:{run.data.tokens_per_step} "
            f"train_seq_len:{run.data.sequence_length} max_wallclock_seconds:60.000"
        )
        log.line(f"seed:{run.seed}")
        log.line("model_params:2060")
        log.line("step: eager, float32, 2 threads, cpu, 1 micro-batches on each of 1 ranks")
        for step in range(1, steps + 1):
            if step <= 10 or step % 20 == 0:
                log.step(
                    step=step, max_steps=1_000_000, loss_nats=9 / step, elapsed_s=step * STEP_S
                )
        log.line(
            f"stopping_early: wallclock_cap train_time:{1000 * seconds:.0f}ms step:{steps}/1000000"
        )
        log.line(f"Serialized model: {len(packed)} bytes")
        log.line(f"Code size: {len(bundle)} bytes")
        log.line(f"Total submission size: {len(packed) + len(bundle)} bytes")
        log.line(
            f"final_sliding_window_exact val_loss:{2 * bpb:.8f} val_bpb:{bpb:.8f} "
            f"stride:{run.evaluation.stride} eval_time:1500ms"
        )
        ledger, now_s = Ledger(place / "ledger.jsonl"), 0.0
        half = steps // 2
        for phase, length_s, on_budget, details in (
            ("set-up", 1.0, False, {}),
            ("warm-up", 2.0, False, {"steps": run.train.warmup_steps}),
            ("train", half * STEP_S, True, {"steps": half}),
            ("checkpoint", 0.5, False, {"step": half}),
            ("train", (steps - half) * STEP_S, True, {"steps": steps}),
            ("discarded train", 0.2, False, {"steps": steps}),
            ("pack", 1.0, False, {}),
            ("evaluate", 2.0, False, {}),
        ):
            start_s, now_s = now_s, round(now_s + length_s, 6)
            ledger.append(
                Phase(
                    name=phase, start_s=start_s, stop_s=now_s, on_budget=on_budget, details=details
                )
            )
        facts = SubmissionFacts(
            name=run.name, seed=run.seed, author="Ada", date="2026-01-02",
            val_bpb=bpb, val_loss=2 * bpb, step_stop=steps,
            wallclock_seconds=seconds, eval_time_seconds=1.5, model_params=2060,
            hardware="2 cores of a CPU", pytorch_version="2.13.0", data_fingerprint="f" * 64,
        )  # fmt: skip
        out = self.folder / name
        write_submission(
            out,
            weights_bytes=packed,
            bundle=bundle,
            facts=dataclasses.replace(facts, **changes),
            logs={name: place / name for name in ("train.log", "ledger.jsonl")},
            track=TRACK,
        )
        return out

    @staticmethod
    def model(run: RunConfig) -> bytes:
        """2,060 parameters: 2,000 codes and 60 small ones; scales and counts are none."""
        codes = np.zeros((40, 50), np.int8)
        return write_container(
            [
                Section({"w:codes": codes, "counts": np.zeros(9, np.int8)}),
                Section({"w:scales": np.ones(40, np.float16), "b": np.ones(60, np.float16)}),
            ],
            {"run": run.to_dict()},
        )


@pytest.fixture
def story(tmp_path: Path, root: Path) -> Story:
    return Story(tmp_path, root)


def edit(path: Path, *pairs: tuple[str, str]) -> None:
    """Replace text in a file, each exactly once."""
    text = path.read_text()
    for old, new in pairs:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    path.write_text(text)


def caught(found: RuleResult, *said: str) -> None:
    assert found.status is Status.FAIL, found
    assert "\n" not in found.evidence
    for words in said:
        assert words in found.evidence, found.evidence


def test_an_honest_submission_passes_and_everything_is_compared(story: Story) -> None:
    found = provenance(story.write(), TRACK)
    assert (found.status, found.evidence) == (Status.PASS, "")
    assert int(found.measured.split()[0].replace(",", "")) > 100


def test_real_runs_of_the_program_pass(runs: Path, contest: Any) -> None:
    track = load_track(str(contest.track))
    folders = sorted(path / "submission" for path in runs.iterdir() if path.is_dir())
    assert len(folders) == 3
    for folder in folders:
        found = provenance(folder, track)
        assert (found.status, found.evidence) == (Status.PASS, "")


# Cheats


def test_a_claimed_score_that_the_log_does_not_have_is_caught(story: Story) -> None:
    folder = story.write()
    edit(folder / "submission.json", ('"val_bpb": 1.23456789', '"val_bpb": 1.20456789'))
    caught(
        provenance(folder, TRACK),
        "submission.json, line 10: val_bpb 1.20456789, logs/train.log, line 23: bpb 1.23456789",
    )


def test_a_log_with_a_better_score_written_in_is_caught(story: Story) -> None:
    folder = story.write()
    edit(folder / "logs/train.log", ("val_bpb:1.23456789", "val_bpb:1.13456789"))
    caught(provenance(folder, TRACK), "logs/train.log, line 23: bpb 1.13456789")


def test_the_claim_of_another_artifact_is_caught(story: Story) -> None:
    mine, better = story.write(), story.write("better", steps=80, bpb=1.1, run=change(seed=8))
    shutil.copy(better / "submission.json", mine / "submission.json")
    found = provenance(mine, TRACK)
    caught(found, "seed 8, model.srz: seed 7", "on the budget 59.5", " more")
    # The sizes of both bundles may be the same by chance.
    assert found.measured.startswith(("8 contradictions", "9 contradictions"))


def test_the_artifact_of_another_claim_is_caught(story: Story) -> None:
    mine, other = story.write(), story.write("other", run=change(model=ModelConfig(width=96)))
    shutil.copy(other / "model.srz", mine / "model.srz")
    caught(provenance(mine, TRACK), "train_gpt.py: model.width 64, model.srz 96")


def test_the_ledger_of_another_run_is_caught(story: Story) -> None:
    mine, shorter = story.write(), story.write("shorter", steps=60)
    shutil.copy(shorter / "logs/ledger.jsonl", mine / "logs/ledger.jsonl")
    caught(
        provenance(mine, TRACK),
        "wallclock_seconds 59.5, logs/ledger.jsonl, lines 1 to 8: on the budget 42",
        "step_stop 85, logs/ledger.jsonl, line 5: steps 60",
    )


def test_the_log_of_another_run_is_caught(story: Story) -> None:
    mine, shorter = story.write(), story.write("shorter", steps=60, run=change(seed=8))
    shutil.copy(shorter / "logs/train.log", mine / "logs/train.log")
    caught(
        provenance(mine, TRACK),
        "step_stop 85, logs/train.log, line 18: step 60",
        "wallclock_seconds 59.5, logs/train.log, line 18: 42",
    )


def test_a_swapped_recipe_is_caught(story: Story) -> None:
    folder = story.write()
    longer = dataclasses.replace(RUN.train, log_every_steps=25)
    (folder / "model.srz").write_bytes(story.model(change(train=longer)))
    caught(
        provenance(folder, TRACK),
        "train_gpt.py: train.log_every_steps 20, model.srz 25",
        "logs/train.log, line 15: step 20, train.log_every_steps is 25",
    )


@pytest.mark.parametrize("seed", [8, 43])
def test_an_edited_seed_is_caught(story: Story, seed: int) -> None:
    folder = story.write()
    edit(folder / "submission.json", ('"seed": 7', f'"seed": {seed}'))
    caught(provenance(folder, TRACK), f"seed {seed}, model.srz: seed 7")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step:85/1000000", "step:95/1000000", "step_stop 85, logs/train.log, line 19: step 95"),
        ("train_time:59500ms", "train_time:49500ms", "line 19: 49.5"),
        ("train_time:42000ms", "train_time:40000ms", "line 17: train_time over step is 666.6"),
        ("step:40/1000000", "step:41/1000000", "line 16: step 41, train.log_every_steps is 20"),
        ("step:60/1000000 ", "step:80/1000000 ", "line 18: step 80 at 56,000 ms follows"),
        ("step:10/1000000", "step:10/2000000", "max_steps 2,000,000, model.srz: train.max_steps"),
        ("seed:7", "seed:8", "seed 7, logs/train.log, line 2: seed 8"),
        (
            "_seq_len:1024",
            "_seq_len:64",
            "line 1: train_seq_len 64, model.srz: data.sequence_",
        ),
        (
            "_tokens:524288",
            "_tokens:1",
            "line 1: train_batch_tokens 1, model.srz: data.tokens_",
        ),
        ("model_params:2060", "model_params:2061", "model_params 2,060, logs/train.log, line 3"),
        ("2 threads, cpu", "2 threads, cuda:0", "'2 cores of a CPU', logs/train.log, line 4: cuda"),
        ("eval_time:1500ms", "eval_time:900ms", "eval_time_seconds 1.5, logs/train.log"),
        ("stride:64", "stride:32", "stride 32, model.srz: evaluation.stride 64"),
    ],
)
def test_a_faked_line_of_the_log_is_caught(story: Story, old: str, new: str, said: str) -> None:
    folder = story.write()
    edit(folder / "logs/train.log", (old, new))
    caught(provenance(folder, TRACK), said)


def test_sizes_in_the_log_that_are_not_those_on_disk_are_caught(story: Story) -> None:
    folder = story.write()
    size = (folder / "model.srz").stat().st_size
    text = re.sub(
        r"(model|size): (\d+) bytes", r"\1: 1\2 bytes", (folder / "logs/train.log").read_text()
    )
    (folder / "logs/train.log").write_text(text)
    caught(
        provenance(folder, TRACK),
        "logs/train.log, line 20: model bytes 1",
        f"model.srz has {size:,}",
        "train_gpt.py has",
        "both files have",
    )


def test_a_log_that_is_sped_up_throughout_does_not_fit_the_ledger(story: Story) -> None:
    folder = story.write()
    path = folder / "logs/train.log"

    # Every time halved, each line right in itself: only the ledger knows better.
    def halve(found: re.Match[str]) -> str:
        step, ms = int(found[1]), int(found[3]) / 2
        return f"step:{step}{found[2]}train_time:{ms:.0f}ms step_avg:{ms / step:.2f}ms"

    pattern = r"step:(\d+)(/\d+ train_loss:\S+ )train_time:(\d+)ms step_avg:\S+ms"
    path.write_text(re.sub(pattern, halve, path.read_text()))
    caught(
        provenance(folder, TRACK),
        "line 17: step 60 at 21,000 ms, logs/ledger.jsonl, line 3: 42 steps at 29,400 ms",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step_stop": 2_000_000}, "train.max_steps is 1,000,000"),
        ({"wallclock_seconds": 61.0}, "wallclock_seconds 61, train.budget_s is 60"),
        ({"model_params": 9_999_999}, "model_params 9,999,999, model.srz packs 2,060"),
        ({"date": "yesterday"}, "date 'yesterday' is no date"),
        ({"hardware": "8xNVIDIA H100"}, "'8xNVIDIA H100', logs/train.log, line 4: cpu"),
    ],
)
def test_claims_that_no_file_bears_out_are_caught(
    story: Story, change: dict[str, Any], said: str
) -> None:
    caught(provenance(story.write(**change), TRACK), said)


def test_phases_in_an_impossible_order_are_caught(story: Story) -> None:
    folder = story.write()
    path = folder / "logs/ledger.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    entries[0]["phase"], entries[1]["phase"], entries[5]["phase"] = "pack", "idle", "warm-up"
    path.unlink()
    ledger = Ledger(path)
    for entry in entries:  # the chain is whole again
        del entry["previous"]
        ledger.append(Phase(name=entry.pop("phase"), **entry))
    caught(
        provenance(folder, TRACK),
        "line 1: 'pack' before the training in line 5",
        "line 6: first 'warm-up' after training in line 3",
        "line 6: 'warm-up' of steps 85, model.srz: train.warmup_steps 3",
    )


# What is honest, or cannot be compared


def test_a_resumed_run_passes_though_its_log_repeats_steps(story: Story) -> None:
    folder = story.write()
    lost = "step:{0}/1000000 train_loss:2.0000 train_time:{1}ms step_avg:{2:.2f}ms\n"
    # Killed after step 60, resumed from the checkpoint at 42, faster this time.
    again = lost.format(60, 43_500, 725) + "model_params:2060\nresumed:step:42 train_time:29400ms\n"
    edit(folder / "logs/train.log", ("step:60/", again + "step:60/"))
    assert provenance(folder, TRACK).status is Status.PASS


def test_a_run_that_is_packed_again_passes_by_its_last_lines(story: Story) -> None:
    folder = story.write()
    path = folder / "logs/train.log"
    lines = path.read_text().splitlines(keepends=True)
    older = [re.sub(r"\d+ bytes", "1 bytes", line) for line in lines[-4:]]
    path.write_text("".join([*lines[:-4], *older, *lines[-4:]]))
    assert provenance(folder, TRACK).status is Status.PASS


def test_a_run_that_ended_by_count_has_no_line_of_its_end(story: Story) -> None:
    run = change(train=dataclasses.replace(RUN.train, max_steps=85))
    folder = story.write(run=run)
    path = folder / "logs/train.log"
    path.write_text(
        "".join(
            line.replace("/1000000", "/85")
            for line in path.read_text().splitlines(keepends=True)
            if not line.startswith("stopping_early")
        )
    )
    assert provenance(folder, TRACK).status is Status.PASS
    edit(folder / "submission.json", ('"step_stop": 85', '"step_stop": 80'))
    caught(provenance(folder, TRACK), "step_stop 80, logs/train.log, line 18: max_steps 85")


def test_seed_and_budget_may_be_arguments_of_the_bundle(story: Story) -> None:
    folder = story.write()
    shorter = dataclasses.replace(RUN.train, budget_s=59.6)
    (folder / "train_gpt.py").write_bytes(
        build_bundle(change(seed=1, train=shorter), root=story.root)
    )
    found = provenance(folder, TRACK)
    # Its size is another one, and nothing else.
    assert found.status is Status.FAIL and "seed" not in found.evidence
    assert "budget_s" not in found.evidence


def test_a_predictor_of_ones_own_has_no_such_log_and_passes(bench: Any) -> None:
    found = provenance(bench.submit(), bench.track)
    assert found.status is Status.PASS
    for words in ("the recipe in the code", "logs/train.log has no line of our trainer", "steps ("):
        assert words in found.evidence


def test_a_predictor_without_a_recipe_passes_too(bench: Any) -> None:
    folder = bench.submit()
    code, model = pack_predictor(
        "def load(arrays): ...", {"t": bench.table}, vocab_size=8, evaluation=EvalConfig()
    )
    (folder / "train_gpt.py").write_bytes(code)
    (folder / "model.srz").write_bytes(model)
    (folder / "logs/train.log").unlink()
    claims = json.loads((folder / "submission.json").read_text())
    claims |= {"bytes_code": len(code), "bytes_model": len(model)}
    (folder / "submission.json").write_text(json.dumps(claims, indent=2))
    found = provenance(folder, bench.track)
    assert found.status is Status.PASS
    assert "model.srz, which has none" in found.evidence
    assert "a predictor of its author's own, trained elsewhere" in found.evidence
    claims["bytes_model"] += 1
    (folder / "submission.json").write_text(json.dumps(claims, indent=2))
    caught(provenance(folder, bench.track), "bytes_model")


def test_our_trainer_without_its_log_is_undecided(story: Story) -> None:
    folder = story.write()
    (folder / "logs/train.log").unlink()
    found = provenance(folder, TRACK)
    assert (found.status, found.fix) == (
        Status.UNDECIDED,
        "hand in the logs/train.log that our trainer wrote",
    )


def damage_claims(folder: Path) -> None:
    (folder / "submission.json").write_text("[" * 100_000)


def damage_everything(folder: Path) -> None:
    (folder / "submission.json").write_text(
        json.dumps({"val_bpb": 10**400, "seed": True, "step_stop": "many", "date": 5, "name": []})
        + "\n" * 9
    )
    (folder / "model.srz").write_bytes(b"\x80\x04K\x01.")
    (folder / "logs/ledger.jsonl").write_text('{"phase": 1')
    (folder / "logs/train.log").write_bytes(b"\xff\xfe step:1/1\n" * 100)


@pytest.mark.parametrize("damage", [damage_claims, damage_everything])
def test_what_cannot_be_read_is_no_crash(story: Story, damage: Callable[[Path], None]) -> None:
    folder = story.write()
    damage(folder)
    assert provenance(folder, TRACK).status is Status.UNDECIDED


def test_files_far_over_the_limit_are_not_opened(story: Story) -> None:
    found = provenance(story.write(), dataclasses.replace(TRACK, cap_bytes=10))
    assert "the recipe in model.srz, which does not open" in found.evidence
    assert "train_gpt.py has" in found.evidence


def test_a_log_of_many_restarts_is_read_in_one_pass(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    line = (
        "step:{0}/9 train_loss:1.0 train_time:1ms step_avg:1.0ms\nresumed:step:0 train_time:1ms\n"
    )
    path.write_text("".join(line.format(step) for step in range(9_000)))
    assert [entry["step"] for entry in read_train_log(path).course] == [0]


# Bundles are read, not run


def test_a_bundle_says_what_it_was_built_from(story: Story) -> None:
    found = read_bundle(build_bundle(RUN, root=story.root))
    assert found.run == RUN
    assert "speedrun.config" in found.sources and "speedrun.bundled" in found.sources


def repack(bundle: bytes, **members: bytes) -> bytes:
    """The bundle with some members replaced: `z` is the blob, `loader` and `main` the others."""
    names = {"loader": "speedrun.py", "main": "__main__.py", "z": "z"}
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for key, data in members.items():
        parts[names.get(key, key)] = data
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return target.getvalue()


def test_hostile_bundles_are_refused_and_not_executed(story: Story) -> None:
    bundle = build_bundle(RUN, root=story.root)
    sources = read_bundle(bundle).sources
    finder = sources["speedrun"]

    def blob(run_module: str, **rest: str) -> bytes:
        pairs = {"speedrun": finder, "speedrun.bundled": run_module} | rest
        text = "\0".join(part for pair in pairs.items() for part in pair)
        return brotli.compress(text.encode(), quality=1)

    imports = "from speedrun.config import RunConfig\nfrom speedrun.standalone import main\n"
    hostile = [
        b"",
        b"print('a script')",
        b"PK\x03\x04 nothing",
        bundle[:-100],
        bundle[: len(bundle) // 2] + bundle[len(bundle) // 2 + 1 :],
        repack(bundle, other=b"more"),
        repack(bundle, main=b"import os"),
        repack(bundle, loader=b"import os"),
        repack(bundle, z=b"no brotli"),
        repack(bundle, z=brotli.compress(bytes(2 * SOURCES_LIMIT_BYTES), quality=1)),
        repack(bundle, z=bytes(2 * SOURCES_LIMIT_BYTES)),
        repack(bundle, z=blob(imports + "RUN=RunConfig.from_dict({'name':'x'})", speedrun="")),
        repack(bundle, z=blob(imports + "RUN=RunConfig.from_dict({'name':open('/x')})")),
        repack(
            bundle, z=blob(imports + "RUN=RunConfig.from_dict({'name':'x','seed':" + "-" * 9_999)
        ),
        repack(bundle, z=blob(imports + "RUN=RunConfig.from_dict({'model':{'width':'x'}})")),
        repack(bundle, z=blob(imports + "RUN=RunConfig.from_dict([1])")),
        repack(bundle, z=blob(imports + "RUN=1;RUN=RunConfig.from_dict({'name':'x'})")),
        repack(
            bundle, z=blob(imports + "RUN=RunConfig.from_dict({'name':'" + "x" * 30_000 + "'})")
        ),
    ]
    for data in hostile:
        with pytest.raises(FormatError, match=r"train_gpt\.py"):
            read_bundle(data)


def change(**values: Any) -> RunConfig:
    return dataclasses.replace(RUN, **values)
