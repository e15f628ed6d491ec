"""Protects what is said about several seeds: all are counted, none chosen, the worst decides."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from speedrun.bpb import score
from speedrun.cli.seeds import read_standing
from speedrun.errors import ConfigError, RecordError
from speedrun.files import sha256_file
from speedrun.recipes.load import write_recipe
from speedrun.records.record import Record, SeedResult
from speedrun.records.runs import RunRow, append_run
from speedrun.verify.judge import verify_submission
from speedrun.verify.verdict import Verdict


class Table:
    """The predictor of a submission, in process."""

    kind = "fixed"

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.vocab_size = table, len(table)

    def predict(self, tokens: np.ndarray, scored_from: np.ndarray) -> np.ndarray:
        asked = np.arange(tokens.shape[1]) >= scored_from[:, None]
        return self.table[tokens[asked]]

    def observe(self, tokens: np.ndarray) -> None:
        pass


@dataclasses.dataclass
class Seeds:
    """Three submissions of one recipe, a little different, and the program that judges them."""

    bench: Any
    call: Callable[..., Any]
    run: Any
    folders: list[Path]
    scores: list[float]

    def verify(self, *words: object, folders: list[Path] | None = None) -> Any:
        track = self.bench.folder / "track.toml"
        track.write_text(tomli_w.dumps(self.bench.track.to_dict()))
        return self.call("verify", *(folders or self.folders), "--track", track, *words)

    def together(self, *words: object, **options: Any) -> dict[str, Any]:
        """The last element of the array, with the exit code."""
        done = self.verify(*words, "--json", **options)
        found = json.loads(done.out)
        assert isinstance(found, list), done.out
        return {"exit": done.code, **found[-1]}


@pytest.fixture
def seeds(bench: Any, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Seeds:
    import speedrun.data.corpus
    import speedrun.verify.judge

    monkeypatch.setattr(speedrun.data.corpus, "open_corpus", lambda *args, **rest: bench.text)
    monkeypatch.setattr(speedrun.verify.judge, "verify_submission", verify_once)
    run = bench.submit.__func__.__kwdefaults__["run"]
    dice, folders, scores, table = np.random.default_rng(1), [], [], bench.table
    for seed in (42, 43, 44):
        bench.table = table + dice.normal(0, 0.05, table.shape).astype(np.float32).round(3)
        found = score(
            Table(bench.table), bench.text.tokens, num_bytes=bench.text.val_raw_bytes,
            context=32, stride=8, batch_windows=4,
        )  # fmt: skip
        folder = bench.folder / "runs" / f"run{seed}" / "submission"
        folder.parent.mkdir(parents=True)
        bench.submit(claim=found.bpb, run=dataclasses.replace(run, seed=seed)).rename(folder)
        folders.append(folder)
        scores.append(found.bpb)
    return Seeds(bench, call, run, folders, scores)


VERDICTS: dict[tuple[str, str], Verdict] = {}


def verify_once(folder: Path, *rest: Any, **options: Any) -> Verdict:
    """The judge, who need not judge the same files again for every test."""
    key = (sha256_file(folder / "manifest.json"), options["level"])
    if (folder / "extra.bin").exists():  # not in the manifest, so not in the key
        return verify_submission(folder, *rest, **options)
    if key not in VERDICTS:
        VERDICTS[key] = verify_submission(folder, *rest, **options)
    return VERDICTS[key]


def row(seeds: Seeds, folder: str, **changes: Any) -> RunRow:
    """A line of the table of runs."""
    values: dict[str, Any] = {
        "time": "2026-01-02T03:04:05+00:00", "folder": folder, "recipe": seeds.run.name,
        "track": "test", "track_version": 3, "seed": 50, "val_bpb": 0.9, "num_bytes": 1,
        "num_steps": 10, "train_seconds": 59.5, "verdict": "PASS",
    }  # fmt: skip
    return RunRow(**values | changes)


def test_seeds_are_judged_one_by_one_and_then_together(seeds: Seeds, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.json"
    done = seeds.verify("--against", "1.0,1.01,1.005", "--json", "--out", out)
    *verdicts, together = json.loads(done.out)
    assert json.loads(out.read_text()) == [*verdicts, together]
    assert [verdict["measurement"]["bpb"] for verdict in verdicts] == pytest.approx(seeds.scores)
    assert together["seeds"] == [42, 43, 44] and together["statuses"] == ["PASS"] * 3
    assert together["val_bpb"]["mean"] == pytest.approx(np.mean(seeds.scores))
    assert together["val_bpb"]["spread"] == pytest.approx(np.std(seeds.scores, ddof=1))
    (result,) = together["results"]
    assert (result["id"], result["status"], together["warnings"]) == ("significance", "PASS", [])
    assert done.code == 0


def test_the_text_names_every_folder_mean_interval_and_advice(seeds: Seeds) -> None:
    close = seeds.scores[0] + 0.01
    done = seeds.verify("--against", f"{close},{close + 0.004},{close + 0.008}")
    assert done.code == 2
    for folder in seeds.folders:
        assert done.out.splitlines().count(str(folder)) == 1
    mean, spread = np.mean(seeds.scores), np.std(seeds.scores, ddof=1)
    assert f"val_bpb {mean:.4f} ± {spread:.4f} (n=3), 95 % interval " in done.out
    assert "UNDECIDED significance: gain +" in done.out and "more seeds" in done.out


def test_without_a_record_only_the_verdicts_decide(seeds: Seeds) -> None:
    done = seeds.verify("--level", "static")
    assert done.code == 0 and "compared with no record; name one with --against" in done.out
    assert "significance" not in done.out


def test_one_submission_is_judged_as_ever_and_has_no_p_value(seeds: Seeds) -> None:
    alone = seeds.verify("--json", "--level", "static", folders=seeds.folders[:1])
    assert json.loads(alone.out)["status"] == "PASS"
    together = seeds.together("--against", "1.0,1.01,1.005", folders=seeds.folders[:1])
    assert (together["exit"], together["results"][0]["status"]) == (2, "UNDECIDED")
    assert "one seed has no spread" in together["results"][0]["evidence"]


def test_the_worst_of_all_decides(seeds: Seeds) -> None:
    (seeds.folders[1] / "extra.bin").write_bytes(b"capacity")
    together = seeds.together("--against", "1.0,1.01,1.005", "--level", "static")
    assert (together["exit"], together["status"]) == (1, "FAIL")
    assert together["statuses"] == ["PASS", "FAIL", "PASS"]
    assert "a submission has no score" in together["results"][0]["evidence"]


def test_repeated_and_missing_seeds_are_warned_of(seeds: Seeds) -> None:
    twice = [seeds.folders[0], seeds.folders[0], seeds.folders[2]]
    together = seeds.together("--against", "1.0,1.01,1.005", folders=twice)
    assert together["exit"] == 2
    assert "seed 42 comes more than once" in together["results"][0]["evidence"]
    repeated, left_out = together["warnings"]
    assert repeated.startswith("seed 42 is handed in 2 times")
    assert left_out.startswith("seeds 42, 44 leave out 43: if they were run too, hand them in")


def test_runs_in_the_table_that_were_not_handed_in_count_against_it(seeds: Seeds) -> None:
    runs = seeds.bench.folder / "runs"
    for seed in (42, 43, 44):  # these were
        append_run(row(seeds, f"run{seed}", seed=seed), runs)
    words = ("--against", "1.0,1.01,1.005")
    assert seeds.together(*words)["warnings"] == []
    for seed, bpb in ((45, 0.99), (46, 1.02), (46, 1.01)):
        append_run(row(seeds, f"more{seed}", seed=seed, val_bpb=bpb), runs)
    append_run(row(seeds, "another", recipe="test/other"), runs)
    append_run(row(seeds, "older-rules", track_version=2), runs)
    together = seeds.together(*words)
    (warning,) = together["warnings"]
    assert "has 3 more of this recipe (seeds 45, 46, 46, best 0.9900, mean 1.0067)" in warning
    (result,) = together["results"]
    assert (result["status"], together["exit"]) == ("UNDECIDED", 2)
    assert "with the 3 runs that were not handed in" in result["evidence"]


def test_runs_with_other_settings_are_other_experiments(seeds: Seeds) -> None:
    runs = seeds.bench.folder / "runs"
    for name, change in (("same", {}), ("other", {"optim": {"matrix_lr": 0.01}})):
        append_run(row(seeds, name), runs)
        parts = {
            key: dataclasses.replace(getattr(seeds.run, key), **value)
            for key, value in change.items()
        }
        write_recipe(runs / name / "recipe.toml", dataclasses.replace(seeds.run, seed=50, **parts))
    assert "has 1 more" in seeds.together("--level", "static")["warnings"][0]
    elsewhere = seeds.bench.folder / "elsewhere"
    elsewhere.mkdir()
    assert seeds.together("--level", "static", "--runs", elsewhere)["warnings"] == []


def test_submissions_of_two_recipes_are_no_seeds(seeds: Seeds) -> None:
    changed = dataclasses.replace(
        seeds.run, seed=45, optim=dataclasses.replace(seeds.run.optim, matrix_lr=0.01)
    )
    other = seeds.bench.submit(run=changed)
    together = seeds.together("--against", "1.0,1.1", folders=[*seeds.folders, other])
    assert together["warnings"] == [
        "these are not seeds of one recipe: they differ in optim.matrix_lr"
    ]
    assert together["results"][0]["status"] == "UNDECIDED"


def test_training_again_is_a_rule_of_each_verdict(seeds: Seeds) -> None:
    seeds.bench.text.train_shards, seeds.bench.text.manifest = [], None
    (seeds.folders[1] / "extra.bin").write_bytes(b"capacity")
    done = seeds.verify("--retrain", "--json", folders=seeds.folders[:2])
    first, second, _ = json.loads(done.out)
    last = [verdict["results"][-1] for verdict in (first, second)]
    assert [result["id"] for result in last] == ["retrain", "retrain"]
    assert "holds no training code" in last[0]["evidence"]
    assert last[1]["evidence"] == "not run: the submission breaks another rule"


# What `--against` may name


def record(seeds: Seeds, folder: Path, **changes: Any) -> Path:
    rest = {"val_loss": 1.0, "num_bytes": 1, "train_seconds": 1.0, "num_steps": 1}
    results = tuple(
        SeedResult(seed=seed, val_bpb=bpb, manifest_sha256="0" * 64, **rest)
        for seed, bpb in ((1, 1.0), (2, 1.01))
    )
    values: dict[str, Any] = {
        "slug": "one", "date": "2026-01-02", "author": "Ada", "summary": "", "track": "test",
        "track_version": 3, "data_fingerprint": seeds.bench.text.fingerprint, "num_tokens": 1,
        "num_bytes": 1, "hardware": "", "sandboxed": True, "seeds": results,
    }  # fmt: skip
    folder.mkdir(parents=True)
    found = dataclasses.asdict(Record(**values | changes))
    (folder / "record.json").write_text(json.dumps(found))
    return folder


def test_a_record_is_named_by_its_folder_the_root_or_its_scores(
    seeds: Seeds, tmp_path: Path
) -> None:
    track, text = seeds.bench.track, seeds.bench.text
    folder = record(seeds, tmp_path / "records/test/one")
    assert read_standing(str(folder), track, text) == [1.0, 1.01]
    assert read_standing(str(tmp_path / "records"), track, text) == [1.0, 1.01]
    assert read_standing("1.5, 1.25", track, None) == [1.5, 1.25]
    (tmp_path / "empty").mkdir()
    assert read_standing(str(tmp_path / "empty"), track, text) is None


@pytest.mark.parametrize("name", ["nowhere", "1.0,x", "1.0,nan", "-1", ","])
def test_what_names_no_record_is_one_clear_error(seeds: Seeds, name: str) -> None:
    with pytest.raises(ConfigError, match="expected a record's folder, or scores like"):
        read_standing(name, seeds.bench.track, None)


@pytest.mark.parametrize(
    ("key", "value"), [("track", "golf"), ("track_version", 2), ("data_fingerprint", "e" * 64)]
)
def test_a_record_of_other_rules_or_text_is_refused(
    seeds: Seeds, tmp_path: Path, key: str, value: Any
) -> None:
    folder = record(seeds, tmp_path / "other", **{key: value})
    with pytest.raises(RecordError, match=f"{key} is "):
        read_standing(str(folder), seeds.bench.track, seeds.bench.text)
    shutil.rmtree(folder)
