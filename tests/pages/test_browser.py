"""Protects the pages where they are read: in Chromium, by keyboard, by axe-core, on a phone."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_site.py"
MODULES = os.environ.get("SPEEDRUN_NODE_MODULES", "node_modules")
"""Where `npm install playwright-core axe-core` put them."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser finds on a small site, a record and a larger table."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or shutil.which("node") is None:
        pytest.skip("needs chromium and node: apt-get install chromium nodejs")
    for name in ("playwright-core", "axe-core"):
        if not (Path(MODULES) / name).is_dir():
            pytest.skip(f"needs {name} in {MODULES}: npm install it, set SPEEDRUN_NODE_MODULES")
    spec = importlib.util.spec_from_file_location("check_site", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    pages = tool.build(tmp_path_factory.mktemp("site"), [], small=12, large=120)
    found: dict[str, Any] = tool.look(chromium, Path(MODULES), pages, pages["large"], None, 1)
    return found


def test_nothing_is_asked_of_a_network_and_nothing_complains(seen):
    assert seen["requests"] == [] and seen["complaints"] == []


def test_no_page_is_wider_than_a_phone(seen):
    assert seen["wide"] == []


def test_axe_finds_nothing_serious(seen):
    assert [each for each in seen["axe"] if each["impact"] in ("serious", "critical")] == []


def test_the_first_tab_reaches_the_skip_link(seen):
    assert seen["table"]["skip"] == "skip"


def test_headings_sort_both_ways_by_keyboard_and_say_so(seen):
    up, down = seen["table"]["up"], seen["table"]["down"]
    assert up["dates"] == sorted(up["dates"]) and len(up["dates"]) == 120
    assert down["dates"] == sorted(up["dates"], reverse=True)
    assert (up["sorted"], down["sorted"]) == ([["date", "ascending"]], [["date", "descending"]])


def test_unknown_values_sort_last(seen):
    gains = seen["table"]["gains"]
    known = [float(gain) for gain in gains if gain]
    assert known == sorted(known) and gains == [*gains[: len(known)], *[""] * gains.count("")]
    assert "" in gains and known


def test_the_filter_keeps_what_has_the_words_and_fades_the_other_points(seen):
    table = seen["table"]
    assert table["found"] and all("xsa" in text.lower() for text in table["found"])
    assert table["away"] > 0 and table["shown"] == f"{len(table['found'])} of 120 records"
    assert table["none"] == "0 of 120 records"
