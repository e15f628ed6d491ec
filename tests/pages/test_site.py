"""Protects the site: whole pages, words of strangers that stay words, links that lead somewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from markup import Page, assert_sound
from samples import TRACK, make_records, write_evidence, write_records

from speedrun.errors import RecordError
from speedrun.pages.entries import ladder, make_entries, parent_of, safe_name
from speedrun.pages.site import build_site
from speedrun.records.record import Record, Standing, to_json

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&{{ 7 * 7 }}\u202e\x00\x1b[31m" + "w" * 5_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Records with evidence, and the site of them."""
    root, out = (tmp_path_factory.mktemp(name) for name in ("records", "site"))
    write_records(root, make_records(12), with_evidence=True)
    build_site(root, out, title="Records", published=False)
    return root, out


def test_every_page_is_well_formed_and_loads_nothing(site):
    pages = sorted(site[1].rglob("*.html"))
    assert len(pages) > 12
    for path in pages:
        assert_sound(Page(path.read_bytes()))


def test_every_link_leads_to_a_file_and_a_place_in_it(site):
    pages = {path.resolve(): Page(path.read_bytes()) for path in site[1].rglob("*.html")}
    for path, page in pages.items():
        for link in page.all("href"):
            name, _, place = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_file() and site[1].resolve() in target.parents, link
            assert not place or place in pages[target].ids, link


def test_the_table_has_every_record_with_headings_that_say_how_it_is_sorted(site):
    page = Page((site[1] / "index.html").read_bytes())
    records = make_records(12)
    assert {f"{TRACK}/{record.name}" for record in records} <= set(page.ids)
    assert page.all("aria-sort") == ["ascending"]
    assert page.all("scope").count("row") >= 12
    lines = [attrs for tag, attrs in page.elements if tag == "tr" and "data-status" in attrs]
    assert lines[-1]["data-status"] == "withdrawn"
    assert "published" in page.text and "not verified here" in page.text


def test_a_record_shows_its_evidence(site):
    record = next(r for r in make_records(12) if r.status is Standing.RECORD and not r.withdrawn)
    page = Page((site[1] / TRACK / f"{record.name}.html").read_bytes())
    for said in ("Loss by time", "Loss by tokens", "Bytes", "The clock", "prefixes"):
        assert said in page.text, said
    assert "give it more time" in page.text and "seed 43" in page.text
    assert "left of the limit" in page.text


def two_records() -> tuple[Record, Record]:
    """The second builds on the first."""
    plain = dataclasses.replace(
        make_records(1)[0], status=Standing.RECORD, withdrawn=None, based_on=""
    )
    better = tuple(dataclasses.replace(seed, val_bpb=seed.val_bpb - 0.01) for seed in plain.seeds)
    second = dataclasses.replace(
        plain, slug="second", date="2026-04-01", seeds=better, based_on=plain.name
    )
    return plain, second


def test_the_difference_to_the_parent_is_shown_and_lineage_goes_both_ways(tmp_path):
    from speedrun.recipes.load import load_recipe, write_recipe

    first, second = two_records()
    write_records(tmp_path, [first, second])
    for record, name in ((first, "golf/baseline"), (second, "golf/xsa4-ema")):
        write_recipe(tmp_path / TRACK / record.name / "recipe.toml", load_recipe(name))
    build_site(tmp_path, tmp_path / "site", title="Records", published=False)
    page = Page((tmp_path / "site" / TRACK / f"{second.name}.html").read_bytes())
    assert "model.xsa_layers" in page.text and "What differs from" in page.text
    assert "a gain of 0.0100 from there to here" in page.text
    older = Page((tmp_path / "site" / TRACK / f"{first.name}.html").read_bytes())
    assert "built on by second" in older.text


def test_words_of_strangers_stay_words(tmp_path):
    record = dataclasses.replace(
        two_records()[0], author=HOSTILE, summary=HOSTILE, hardware=HOSTILE, source=HOSTILE
    )
    write_records(tmp_path, [record])
    folder = tmp_path / TRACK / record.name
    write_evidence(folder, record)
    verdicts = {HOSTILE: {"results": [{"id": HOSTILE, "status": HOSTILE, "evidence": HOSTILE}]}}
    (folder / "verdict.json").write_text(json.dumps(verdicts))
    (folder / f"seed1{chr(60)}b{chr(62)}.log").write_text("step:1/2 train_loss:1.0\n" * 3)
    build_site(tmp_path, tmp_path / "site", title=HOSTILE, published=False)
    for path in sorted((tmp_path / "site").rglob("*.html")):
        page = Page(path.read_bytes())
        assert_sound(page)
        assert "{{ 7 * 7 }}" in page.text and "49\u202e" not in page.source
        assert not {"\u202e", "\x00", "\x1b"} & set(page.source)
        assert "w" * 3_000 not in page.source


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("verdict.json", b"[" * 100_000, "Left out"),
        ("verdict.json", b"{nonsense", "verdict.json: not JSON"),
        ("verdict.json", b"[1]", "no verdict"),
        ("recipe.toml", b'extends = "/etc/passwd"', "extends another recipe"),
        ("recipe.toml", b"model = 3", "recipe.toml"),
        ("seed42.ledger.jsonl", b"{}\n", "not a ledger entry"),
        ("seed42.log", b"x" * ((1 << 24) + 1), "at most 16,777,216 are read"),
    ],
)
def test_damaged_evidence_is_left_out_and_said(tmp_path, name, content, said):
    record = two_records()[0]
    write_records(tmp_path, [record])
    write_evidence(tmp_path / TRACK / record.name, record)
    (tmp_path / TRACK / record.name / name).write_bytes(content)
    build_site(tmp_path, tmp_path / "site", title="Records", published=False)
    page = Page((tmp_path / "site" / TRACK / f"{record.name}.html").read_bytes())
    assert_sound(page)
    assert said in page.text and str(tmp_path) not in page.source


def test_links_in_a_record_folder_are_not_followed(tmp_path):
    record = two_records()[0]
    write_records(tmp_path, [record])
    secret = tmp_path / "secret.txt"
    secret.write_text("step:1/2 train_loss:1.0\nstep:2/2 train_loss:1.5\n")
    (tmp_path / TRACK / record.name / "seed7.log").symlink_to(secret)
    build_site(tmp_path, tmp_path / "site", title="Records", published=False)
    page = Page((tmp_path / "site" / TRACK / f"{record.name}.html").read_bytes())
    assert "seed 7" not in page.text and "Loss" not in page.text


def test_names_of_folders_become_names_of_files():
    assert safe_name("../../etc/passwd") == "etc-passwd"
    assert safe_name("a b/<c>") == "a-b-c" and safe_name("...") == "unnamed"


def test_places_gains_and_parents():
    entries = make_entries(make_records(40), folder=TRACK)
    counted = [entry for entry in entries if entry.status != "withdrawn"]
    assert [entry.place for entry in counted] == list(range(1, len(counted) + 1))
    marks, frontiers = ladder(entries)
    assert len(marks) == len(counted)
    for frontier in frontiers:
        named = {mark.row for mark in frontier.marks}
        gains = {e.row: e.gain for e in entries if e.status == frontier.kind and e.gain is not None}
        assert named <= gains.keys()  # of several on one day only the best is on the staircase
        assert sum(gains.values()) == pytest.approx(
            max(e.bpb for e in entries if e.row in gains) - frontier.marks[-1].y
        )
    follower = next(entry for entry in entries if entry.based_on)
    parent = parent_of(follower, entries)
    assert parent is not None and parent.record.name == follower.based_on


def test_published_rows_stand_beside_records_and_can_be_left_out(tmp_path):
    write_records(tmp_path / "records", [two_records()[0]])
    with_them = build_site(tmp_path / "records", tmp_path / "a", title="R")
    without = build_site(tmp_path / "records", tmp_path / "b", title="R", published=False)
    assert len(with_them) > 40 and len(without) == 4
    page = Page(with_them[0].read_bytes())
    assert "best published elsewhere is" in page.text.replace("The ", "")


def test_the_data_beside_the_pages_is_that_of_the_records(site):
    values = json.loads((site[1] / f"{TRACK}.json").read_text())
    lines = (site[1] / f"{TRACK}.csv").read_text().splitlines()
    assert len(lines) == len(values) + 1
    assert {value["slug"] for value in values} >= {record.slug for record in make_records(12)}


def test_a_site_is_a_function_of_its_records(site, tmp_path):
    again = build_site(site[0], tmp_path, title="Records", published=False)
    for path in again:
        assert path.read_bytes() == (site[1] / path.relative_to(tmp_path)).read_bytes()


def test_nothing_to_show_is_said(tmp_path):
    with pytest.raises(RecordError, match="no records of any track"):
        build_site(tmp_path, tmp_path / "site", title="", published=False)
    with pytest.raises(RecordError, match="no records of pockt"):
        build_site(tmp_path, tmp_path / "site", title="", tracks=["pockt"])
    (tmp_path / "pocket" / "x").mkdir(parents=True)
    with pytest.raises(RecordError, match=r"record\.json"):
        build_site(tmp_path, tmp_path / "site", title="", published=False)


def test_a_record_with_a_lone_surrogate_in_its_name_is_written(tmp_path):
    record = two_records()[0]
    write_records(tmp_path, [record])
    text = to_json(record).decode().replace(record.author, "\\ud800")
    (tmp_path / TRACK / record.name / "record.json").write_text(text)
    build_site(tmp_path, tmp_path / "site", title="Records", published=False)
