"""Protects reports and the live view: of finished runs, of runs in progress, of damaged ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tomli_w
from markup import Page, assert_sound
from rich.console import Console

from speedrun.clock import Ledger, Phase
from speedrun.errors import ConfigError
from speedrun.pages.course import course_of_run
from speedrun.pages.dashboard import SILENT_S, Size, dashboard, sparkline
from speedrun.pages.report import write_report
from speedrun.pages.runs import read_run
from speedrun.recipes.load import load_recipe, write_recipe
from speedrun.tracks.load import load_track

HOSTILE = "</script><b onclick=x>'\"&\x1b[31m[red]"


def make_run(folder: Path, *, seed: int = 1, num_rows: int = 60, overrides: tuple[str, ...] = ()):
    """A run folder in the middle of training, with all that a trainer may ever log."""
    folder.mkdir(parents=True)
    recipe = load_recipe("pocket/default", [f"seed={seed}", "train.budget_s=60", *overrides])
    write_recipe(folder / "recipe.toml", recipe)
    (folder / "track.toml").write_text(tomli_w.dumps(load_track("pocket").to_dict()))
    rows = []
    for step in range(1, num_rows + 1):
        slow_s = 3.0 if step > num_rows // 2 else 0.0
        rows.append(
            {"step": step, "progress": step / 100, "elapsed_s": 0.5 * step + slow_s}
            | {"tokens": 4096 * step, "train_nats": 5.0 / step + 1.5 + 0.1 * (step % 3)}
            | {"time": 1_000.0 + 0.5 * step, "memory_bytes": 10**9 + step * 10**6}
            | {"update_norm": {"matrix": 1.0 / step, "scalar": 0.5}, "grad_norm": 2.0 + step % 2}
        )
        if step % 20 == 0:
            rows.append(
                {"step": step, "elapsed_s": rows[-1]["elapsed_s"], "val_bpb": 3.0 - step / 50}
            )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9')
    (folder / "train.log").write_text(
        "model_params:283102\nstep:20/100 forecast_model_bytes:900000 bits_per_weight:5.1\n"
    )
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(Phase(name="warm-up", start_s=0.0, stop_s=9.0, on_budget=False))
    return folder


def finish(folder: Path) -> None:
    """What packing and judging leave."""
    ledger = Ledger(folder / "ledger.jsonl")
    train = {"steps": 60}
    ledger.append(Phase(name="train", start_s=9.0, stop_s=42.0, on_budget=True, details=train))
    (folder / "submission").mkdir()
    claims = {"val_bpb": 1.25, "val_loss": 2.1, "bytes_total": 930_000, "bytes_code": 30_000}
    claims |= {"bytes_model": 900_000}
    (folder / "submission" / "submission.json").write_text(json.dumps(claims))
    rules = [{"id": "size", "status": "PASS", "evidence": HOSTILE}]
    verdict = {"status": "PASS", "results": rules, "measurement": {"bpb": 1.25}}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    sample = {"prompt": "def f", "continuation": HOSTILE}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (folder / "environment.json").write_text(json.dumps({"hardware": HOSTILE}))


def report(*folders: Path) -> Page:
    out = folders[0].parent / "report.html"
    write_report(folders, out)
    page = Page(out.read_bytes())
    assert_sound(page)
    assert "\x1b" not in page.source
    return page


def test_a_finished_run_shows_all_that_was_measured(tmp_path):
    finish(make_run(tmp_path / "run"))
    page = report(tmp_path / "run")
    for said in (
        *("Loss by time", "Loss by tokens", "Score on the way", "Learning rates", "Time per step"),
        *("Memory", "Norms of the updates", "Norms of the gradients", "Bytes", "The clock"),
        *("1.2500", "930,000 of 1,000,000 bytes", "the dot is an outlier", "left of the limit"),
    ):
        assert said in page.text, said
    assert "Not measured" not in page.text
    assert HOSTILE.replace("\x1b", "") in page.text


def test_what_nobody_measured_is_said(tmp_path):
    folder = make_run(tmp_path / "run", num_rows=5)
    rows = (folder / "metrics.jsonl").read_text().splitlines()[:-1]
    keys = ("step", "elapsed_s", "train_nats")
    kept = [{key: json.loads(row)[key] for key in keys} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    page = report(folder)
    assert "Not measured in this run: looks at the validation text" in page.text
    assert "memory, norms of weights and updates." in page.text


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_that_has_only_begun_has_a_report(tmp_path, rows):
    page = report(make_run(tmp_path / "run", num_rows=rows))
    assert "pocket/default" in page.text and "Learning rates" in page.text


def test_several_runs_are_laid_over_one_another_with_their_differences(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=2)
    third = make_run(tmp_path / "c", overrides=("optim.matrix_lr=0.03",))
    finish(second)
    page = report(first, second, third)
    assert "3 runs" in page.text and "optim.matrix_lr" in page.text and "0.03" in page.text
    assert "The same settings, seed 2." in page.text
    # Recipe and seed tell the second apart, the others only their folders.
    cells = [text for tag, text in page.pieces if tag == "bdi"]
    assert {"a", "c", "pocket/default s2"} <= set(cells)


def test_damaged_parts_of_a_run_are_said_and_the_rest_is_shown(tmp_path):
    folder = make_run(tmp_path / "run")
    finish(folder)
    (folder / "ledger.jsonl").write_text("{}\n")
    (folder / "verdict.json").write_text("[" * 100_000)
    (folder / "track.toml").write_text("name = 3\n")
    (folder / "submission" / "submission.json").write_bytes(b"\xff")
    page = report(folder)
    assert page.text.count("Left out:") == 4 and "Loss by time" in page.text
    assert str(tmp_path) not in page.text


def test_no_run_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="or several"):
        write_report([], tmp_path / "r.html")


def test_a_resumed_run_counts_what_it_went_on_with(tmp_path):
    rows = [{"step": s, "elapsed_s": float(s), "train_nats": 3.0} for s in (1, 2, 3, 4)]
    rows += [{"step": s, "elapsed_s": s + 0.5, "train_nats": 2.0} for s in (3, 4, 5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": true}\n[1]\n{"step": NaN}\n')
    course = course_of_run(tmp_path, 10.0)
    assert course.train_nats == [(1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert course.seconds == {1: 1.0, 2: 2.0, 3: 3.5, 4: 4.5, 5: 5.5}
    assert course.step_seconds == [(2, 1.0), (3, 1.5), (4, 1.0), (5, 1.0)]
    assert course.by_tokens(course.train_nats)[0] == (10.0, 3.0)


def seen(folder: Path, size: Size | None, now: float | None = None) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(dashboard(read_run(folder), size, now=now))
    return captured.get()


def test_the_dashboard_shows_both_budgets(tmp_path):
    folder = make_run(tmp_path / "run")
    text = seen(folder, Size(1_200_000, "forecast at the last look"))
    assert "training" in text and "33.0 of 60 s" in text
    assert "1,200,000 of 1,000,000 bytes  forecast at the last look" in text
    assert "60 steps, 8,192 tokens/s" in text and "bits_per_weight:5.1" in text
    assert "no forecast yet" in seen(folder, None)
    finish(folder)
    assert "PASS" in seen(folder, None) and "1.2500 bpb, packed" in seen(folder, None)


def test_between_measurements_the_clock_on_the_wall_goes_on(tmp_path):
    folder = make_run(tmp_path / "run")  # last measured at 1030 by the clock on the wall
    assert "43.0 of 60 s" in seen(folder, None, now=1_040.0)
    assert "silent for 970 s" in seen(folder, None, now=2_000.0)
    assert SILENT_S > 27 and "60.0 of 60 s" in seen(folder, None, now=2_000.0)


def test_log_lines_are_no_markup_on_the_terminal(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "train.log").write_text("[bold]x[/bold] [link=http://x]y[/link]\x1b[2J\n")
    text = seen(folder, None)
    assert "[bold]x[/bold] [link=http://x]y[/link]" in text and "\x1b" not in text


def test_a_sparkline_follows_its_values():
    assert sparkline([1.0, 2.0, 3.0, 8.0]) == "▁▂▃█" and sparkline([5.0, 5.0]) == "▁▁"
    line = sparkline([float(value) for value in range(480)], 48)
    assert len(line) == 48 and list(line) == sorted(line)


def test_states_of_a_run(tmp_path):
    folder = make_run(tmp_path / "run", num_rows=0)
    assert read_run(folder).state == "starting"
    training = make_run(tmp_path / "b")
    assert read_run(training).state == "training"
    with (training / "train.log").open("a") as log:
        log.write("stopping_early: signal train_time:3000ms step:60/100\n")
    assert read_run(training).state == "interrupted"
    (training / "weights.safetensors").write_bytes(b"")
    assert read_run(training).state == "packing"
    finish(training)
    run = read_run(training)
    assert (run.state, run.num_steps, run.spent_s) == ("finished", 60, 33.0)
    assert dataclasses.replace(run, claims={"val_bpb": True}).val_bpb is None
