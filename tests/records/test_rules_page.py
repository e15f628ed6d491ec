"""Protects the rules page: whatever a track file says stands in it."""

from __future__ import annotations

import dataclasses

import pytest

from speedrun.records.rules_page import rules_page
from speedrun.tracks.load import SWITCHES, Ruling, Track, list_tracks, load_track
from speedrun.verify.rules import CONDITIONS


@pytest.mark.parametrize("track", list_tracks(), ids=lambda track: track.name)
def test_a_page_has_all_that_its_track_says(track: Track) -> None:
    page = rules_page(track)
    rulings = page.partition("## Rulings")[2].splitlines()
    assert f"# Rules of {track.name}, version {track.version}" in page
    assert f"{track.cap_bytes:,} bytes" in page and track.hardware in page
    for name, ruling in track.rulings.items():
        (row,) = [line for line in rulings if line.startswith(f"| {name} |")]
        assert ruling.text in row and ruling.source in row
    for switch in SWITCHES:
        assert f"| {switch} |" in page
    assert all(f"| {key} | {words} |" in page for key, words in CONDITIONS.items())


def test_a_changed_track_is_a_changed_page() -> None:
    track = load_track("golf-10min-16mb")
    assert "600 s" in rules_page(track) and "0.00296 bits per byte" in rules_page(track)
    assert "no limit" in rules_page(load_track("golf-unlimited-16mb"))
    ruling = Ruling(text="nobody learns", is_on=False, is_disputed=True)
    changed = dataclasses.replace(track, rulings=track.rulings | {"adaptation": ruling})
    assert "| adaptation | nobody learns, disputed | off |  |" in rules_page(changed)


def test_the_command_prints_the_page_or_writes_it(call, tmp_path) -> None:
    page = rules_page(load_track("pocket"))
    assert call("tracks", "rules", "pocket").out.strip() == page.strip()
    written = call("tracks", "rules", "pocket", "--out", tmp_path / "RULES.md")
    assert written.code == 0 and (tmp_path / "RULES.md").read_text() == page
