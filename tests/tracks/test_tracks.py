"""Tracks are data: shipped ones are valid, a user's own works the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedrun.errors import ConfigError
from speedrun.tracks.load import FOLDER, list_tracks, load_track


def test_the_first_tracks_are_there() -> None:
    limits = {track.name: (track.train_seconds, track.cap_bytes) for track in list_tracks()}
    assert limits["pocket"] == (60.0, 1_000_000)
    assert limits["golf-10min-16mb"] == (600.0, 16_000_000)
    assert "golf-unlimited-16mb" in limits


def test_a_users_own_track(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "pocket.toml").read_text().replace('"pocket"', '"mine"', 1))
    assert load_track(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("cap_bytes = 1_000_000", "cap_bytes = 0", "above zero"),
        ("cap_bytes = 1_000_000", "cap_byte = 1", "cap_bytes"),
        ("train_seconds = 60.0", "", "train_seconds"),
    ],
)
def test_a_broken_track_names_the_key(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "pocket.toml").read_text().replace(before, after))
    with pytest.raises(ConfigError, match=message):
        load_track(str(path))


def test_switches_are_on_unless_a_track_turns_them_off(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (FOLDER / "pocket.toml").read_text()
    path.write_text(text.replace("and say so\"", "and say so\"\nis_on = false"))
    assert load_track("pocket").is_on("adaptation")
    assert not load_track(str(path)).is_on("adaptation")
    assert load_track(str(path)).is_on("lossy-tokenizer")


def test_a_ruling_that_nothing_obeys_cannot_be_switched(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (FOLDER / "pocket.toml").read_text()
    path.write_text(text + '\n[rulings.moonlight]\ntext = "only by night"\nis_on = false\n')
    with pytest.raises(ConfigError, match=r"moonlight.*adaptation"):
        load_track(str(path))


def test_every_disputed_ruling_of_a_shipped_track_names_its_source() -> None:
    for track in list_tracks():
        for name, ruling in track.rulings.items():
            assert ruling.source or not ruling.is_disputed, (track.name, name)
