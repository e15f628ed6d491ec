"""Protects published results: read by rule, in every dialect, with the figures of their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speedrun.errors import RecordError
from speedrun.records.imports import Imported, import_records, write_imported
from speedrun.records.published.load import load_published
from speedrun.records.record import Standing, compare_records, list_records
from speedrun.tracks.load import load_track

STEP = "step:100/20000 train_loss:2.0000 train_time:59000ms step_avg:590.00ms\n"


def log(seed: int | None, bpb: float, loss: float = 2.0) -> str:
    """A run in the words of the first scripts."""
    seeds = f"seed:{seed}\n" if seed is not None else ""
    return (
        f"{seeds}{STEP}stopping_early: wallclock_cap train_time:599000ms step:7000/20000\n"
        "Total submission size int8+zlib: 15900000 bytes\n"
        f"final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}\n"
    )


def put(folder: Path, claims: object, logs: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    text = claims if isinstance(claims, str) else json.dumps(claims)
    (folder / "submission.json").write_text(text)
    for name, content in (logs or {}).items():
        (folder / name).write_text(content)
    return folder


def only(path: Path) -> Imported:
    (found,) = import_records(path)
    return found


@pytest.fixture(name="place")
def place_fixture(tmp_path: Path) -> Path:
    return tmp_path / "track_10min_16mb" / "2026-04-05_My_Idea+more"


def test_keys_that_nobody_knows_and_keys_that_are_missing_are_no_obstacle(place: Path) -> None:
    put(place, {"val_bpb": 1.1, "moon_phase": [1, {"x": None}], "compliance": {"ok": True}})
    record = only(place).record
    assert record is not None
    assert (record.date, record.slug) == ("2026-04-05", "my-idea-more")
    assert (record.author, record.github_id, record.hardware) == ("", "", "")
    assert (record.track, record.status) == ("golf-10min-16mb", Standing.PUBLISHED)
    assert record.claimed_bpb == 1.1 and record.seeds == () and record.val_bpb.mean == 1.1


def test_the_claims_table_comes_first_and_logs_fill_in_what_it_leaves_out(place: Path) -> None:
    table = {"1": {"val_bpb": 1.10}, "7": {"val_bpb": 1.12, "steps": 6999}}
    put(
        place,
        {"val_bpb": 1.11, "seeds": [1, 7], "seed_results": table, "date": "2026-04-04T10:00:00Z"},
        {"train_seed1.log": log(1, 1.10, 1.9), "train_seed7.log": log(7, 1.12, 1.93)},
    )
    record = only(place).record
    assert record is not None and record.date == "2026-04-04"
    first, second = record.seeds
    assert (first.seed, first.val_bpb, first.val_loss, first.num_steps) == (1, 1.10, 1.9, 7000)
    assert (second.num_steps, second.train_seconds, second.num_bytes) == (6999, 599.0, 15_900_000)
    assert record.val_bpb.mean == pytest.approx(1.11)


def test_a_best_seed_is_told_from_the_mean_of_its_logs(place: Path) -> None:
    put(place, {"val_bpb": 1.10}, {"a_seed1.log": log(1, 1.10), "a_seed2.log": log(2, 1.20)})
    record = only(place).record
    assert record is not None
    assert record.claimed_bpb == 1.10 and record.val_bpb.mean == pytest.approx(1.15)


def test_a_log_that_ends_elsewhere_lends_no_loss_to_the_claim(place: Path) -> None:
    put(place, {"val_bpb": 1.10, "val_loss": 1.9}, {"train.log": log(None, 1.20, 2.2)})
    record = only(place).record
    assert record is not None
    (seed,) = record.seeds
    assert (seed.seed, seed.val_bpb, seed.val_loss) == (None, 1.10, 1.9)


def test_bits_per_byte_under_the_name_of_the_loss_are_known_by_the_log(place: Path) -> None:
    put(place, {"val_loss": 1.14276}, {"train.log": log(3, 1.14276, 1.93)})
    record = only(place).record
    assert record is not None and record.claimed_bpb == 1.14276


@pytest.mark.parametrize(
    ("name", "claims", "said"),
    [
        ("2026-04-05_x", "{broken", "not JSON"),
        ("2026-04-05_x", [1, 2], "no JSON object"),
        ("2026-04-05_x", {"author": "Ada"}, "no score"),
        ("undated", {"val_bpb": 1.1}, "no date"),
        ("2026-04-05_x", {"val_bpb": 1.1, "track": "chess"}, "names no known track ('chess')"),
        ("2026-04-05_x", {"val_bpb": 1e9}, "a score of 1e+09"),
        ("2026-04-05_x", {"val_bpb": 0.0}, "a score of 0"),
        ("2026-04-05_x", {"val_bpb": "good"}, "no score"),
        ("2026-13-45_x", {"val_bpb": 1.1}, "expected YYYY-MM-DD"),
    ],
)
def test_what_gives_no_record_gives_a_reason(
    tmp_path: Path, name: str, claims: object, said: str
) -> None:
    put(tmp_path / "track_10min_16mb" / name, claims)
    found = only(tmp_path)
    assert found.record is None and said in found.reason


def test_a_log_without_a_claim_gives_a_reason(place: Path) -> None:
    put(place, {"val_bpb": 1.1}, {"train.log": log(1, 1.1)})
    (place / "submission.json").unlink()
    assert "nobody claims anything" in only(place).reason


def test_importing_twice_changes_nothing_and_another_record_is_not_overwritten(
    place: Path, tmp_path: Path
) -> None:
    put(place, {"val_bpb": 1.1, "author": "Ada"})
    root = tmp_path / "records"
    for _ in range(2):
        folder = write_imported(root, only(place))
    assert json.loads((folder / "submission.json").read_text())["author"] == "Ada"
    (record,) = list_records(root, "golf-10min-16mb")
    assert record == only(place).record
    values = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(values | {"source": "elsewhere"}))
    with pytest.raises(RecordError, match="another record"):
        write_imported(root, only(place))


def test_the_command_says_a_line_for_each_folder(call, place: Path, tmp_path: Path) -> None:
    put(place, {"val_bpb": 1.1, "author": "Ada"})
    put(place.with_name("undated"), {"val_bpb": 1.1})
    root = tmp_path / "records"
    tried = call("records", "import", tmp_path, "--root", root, "--dry-run")
    assert tried.code == 2 and not root.exists()
    assert "claims 1.1 bpb" in tried.out and "none: no date" in tried.out
    done = call("records", "import", place, "--root", root, "--json")
    assert done.code == 0 and json.loads(done.out)[0]["record"]["author"] == "Ada"
    listed = call("records", "list", "--root", root)
    assert "published" in listed.out and max(map(len, listed.out.splitlines())) <= 80


def test_the_published_ladder_has_every_row() -> None:
    golf = load_published("golf-10min-16mb")
    assert len(golf) == 44 and len(load_published()) == 59
    assert all(row.status is Standing.PUBLISHED and not row.counts for row in golf)
    assert golf[0].claimed_bpb == 1.0611 and golf[-1].claimed_bpb == 1.2244
    assert len({row.name for row in load_published()}) == 59
    # What a row says and what its seeds say is one thing, or the best of them.
    for row in load_published():
        if row.seeds:
            near = [row.val_bpb.mean, min(seed.val_bpb for seed in row.seeds)]
            assert min(abs(row.claimed_bpb - value) for value in near) < 6e-5, row.name


def test_published_seeds_compare_by_the_margin_that_their_losses_tell() -> None:
    rows = {row.slug: row for row in load_published("golf-10min-16mb")}
    found = compare_records(
        rows["nine-tuned-settings"],
        rows["three-layer-recurrence"],
        load_track("golf-10min-16mb"),
    )
    assert found.gain == pytest.approx(1.0810 - 1.06108, abs=1e-4) and found.p < 0.01
    # 0.005 nats per token of the older record's 8,192 pieces: 0.00194 bpb.
    assert found.margin == pytest.approx(0.00194, abs=1e-5)


def test_all_published_folders_give_a_record_with_the_figures_of_their_files(
    shared_records: Path,
) -> None:
    found = list(import_records(shared_records))
    assert len(found) == 15 and all(each.record and not each.reason for each in found)
    for each in found:
        claims = json.loads((shared_records / each.place).read_text())
        record = each.record
        assert record is not None
        assert (record.claimed_bpb, record.author) == (claims["val_bpb"], claims["author"])
        assert record.claimed_loss == claims.get("val_loss")
        assert record.date == claims["date"][:10]
        if "bytes_total" in claims:
            assert record.claimed_bytes == claims["bytes_total"]
        for seed, row in claims.get("seed_results", {}).items():
            (mine,) = [s for s in record.seeds if s.seed == int(seed)]
            for key, value in (
                ("val_bpb", mine.val_bpb),
                ("val_loss", mine.val_loss),
                ("artifact_bytes", mine.num_bytes),
                ("steps", mine.num_steps),
                ("train_time_s", mine.train_seconds),
                ("eval_time_s", mine.eval_seconds),
            ):
                if key in row:
                    assert value == row[key], (each.place, seed, key)
