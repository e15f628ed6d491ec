"""Protects the drawings: round ticks, frontiers, labels that do not touch, escaped names."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedrun.clock import Phase
from speedrun.pages.bars import Part, timeline, waterfall
from speedrun.pages.lines import (
    Curve,
    Quantity,
    line_chart,
    outliers,
    raw_and_smooth,
    reach,
    smoothed,
    thinned,
)
from speedrun.pages.points import Frontier, Mark, frontier_of, point_chart
from speedrun.pages.scales import (
    Scale,
    day_ticks,
    decimals,
    say_bytes,
    say_seconds,
    spread_out,
    ticks,
)

X, Y = Quantity(label="time", say=say_seconds), Quantity(label="nats")
HOSTILE = "<script>alert(1)</script>\"' onload=x & ]]>"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_are_round_inside_and_about_as_many_as_asked(low, width, about):
    high = low + width
    found = ticks(low, high, about)
    assert len(found) <= 2.6 * about + 2
    slack = 1e-9 * max(abs(low), abs(high), width) + 1e-11
    assert all(low - slack <= tick <= high + slack for tick in found)
    if len(found) > 1 and width > 1e-3 * abs(low):
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - each) for each in (1, 2, 5, 10)) < 1e-3


def test_ticks_by_hand():
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(1.063, 1.226, 4) == [1.1, 1.15, 1.2]
    assert decimals([1.1, 1.15, 1.2]) == 2 and decimals([0, 2, 4]) == 0
    assert ticks(3, 3, 4) == [3] and ticks(math.nan, 1, 3) == []


def test_days_are_labelled_by_weeks_or_months():
    first = 739_000
    assert day_ticks(first, first + 3, 5) == [first, first + 1, first + 2, first + 3]
    weeks = day_ticks(first, first + 35, 6)
    assert {b - a for a, b in itertools.pairwise(weeks)} == {7}
    months = day_ticks(first, first + 365, 4)
    assert 3 <= len(months) <= 5 and months == sorted(months)


def test_words_for_quantities():
    assert [say_bytes(value) for value in (15_990_112, 27_972, 411)] == ["16 MB", "28 kB", "411 B"]
    assert [say_seconds(value) for value in (600, 59.94, 14_400, 0.0036)] == [
        *("10 min", "59.9 s", "4 h", "3.6 ms"),
    ]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_are_moved_apart_and_keep_their_order(wanted):
    placed = spread_out(wanted, 15.0, 0.0, 100.0)
    ordered = [placed[index] for index in sorted(range(len(wanted)), key=lambda i: wanted[i])]
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert max(placed) <= 100 + 1e-9


def test_the_frontier_is_who_beats_all_before_them():
    dice = random.Random(3)
    marks = [
        Mark(x=dice.random(), y=dice.random(), kind="record", row=str(n), name="n", said="")
        for n in range(60)
    ]
    slow = [
        mark
        for mark in marks
        if all(mark.y < other.y for other in marks if (other.x, other.y) < (mark.x, mark.y))
    ]
    assert sorted(slow, key=lambda mark: mark.x) == list(frontier_of(marks))


def test_a_scale_holds_what_lies_beyond_its_ends():
    scale = Scale(0.0, 10.0, 100.0, 0.0)
    assert [scale(2.5), scale.held(-5.0), scale.held(99.0)] == [75.0, 100.0, 0.0]
    assert Scale(1.0, 1.0, 0.0, 10.0)(1.0) == 5.0


def test_a_high_start_does_not_flatten_the_rest_but_a_late_peak_stays():
    falling = [(float(step), 2 + 5 * math.exp(-step / 3)) for step in range(200)]
    assert reach([Curve(name="a", points=falling)])[1] < 3
    late = [*falling[:150], (150.0, 6.5), *falling[151:]]
    assert reach([Curve(name="a", points=late)])[1] > 6.5


def test_smoothing_follows_the_way_not_the_density_of_measurements():
    points = [(0.0, 9.0), (0.1, 8.0), (0.2, 9.0), *((float(at), 2.0) for at in range(5, 100))]
    found = dict(smoothed(points))
    assert found[99.0] == pytest.approx(2.0, abs=1e-3) and found[20.0] < 2.2
    flat = [(float(at), 3.0) for at in range(50)]
    assert smoothed(flat) == flat


def test_thinning_keeps_the_extremes():
    points = [(float(at), math.sin(at)) for at in range(5_000)]
    points[1234] = (1234.0, 40.0)
    kept = thinned(points, 400)
    assert len(kept) <= 402 and (1234.0, 40.0) in kept and list(kept) == sorted(kept)


def test_outliers_are_far_above_the_others():
    assert outliers([0.10, 0.11, 0.10, 0.10, 0.55, 0.11, 0.10]) == [4]
    assert outliers([0.1] * 9) == [] and outliers([1.0, 9.0]) == []


@pytest.mark.parametrize("values", [[], [(1.0, 2.0)], [(1.0, math.nan), (2.0, math.inf)]])
def test_nothing_to_draw_is_no_chart(values):
    curve = Curve(name="a", points=values)
    assert line_chart([curve], title="t", description="d", x=X, y=Y) is None
    assert waterfall([], limit=1.0, title="", description="", say=str) is None
    assert timeline([], title="", description="") is None


def test_names_in_charts_are_escaped_everywhere():
    curves = [
        *raw_and_smooth(HOSTILE, [(float(at), 1.0 + at % 3) for at in range(90)], 0),
        Curve(name="b", points=[(0.0, 1.0), (50.0, 2.0)], tone=1),
    ]
    charts = [line_chart(curves, title=HOSTILE, description=HOSTILE, x=X, y=Y)]
    marks = [
        Mark(x=float(n), y=1.0 / (n + 1), kind="record", row=HOSTILE, name=HOSTILE, said=HOSTILE)
        for n in range(3)
    ]
    charts.append(
        point_chart(
            marks,
            [Frontier(marks=tuple(marks), kind="record")],
            title=HOSTILE,
            description=HOSTILE,
            x=X,
            y_label=HOSTILE,
            limit=(1.0, HOSTILE),
        )
    )
    charts.append(
        waterfall(
            [Part(name=HOSTILE, amount=3.0)],
            limit=5.0,
            title=HOSTILE,
            description=HOSTILE,
            say=lambda amount: HOSTILE,
        )
    )
    phase = Phase(name=HOSTILE, start_s=0.0, stop_s=2.0, on_budget=True)
    charts.append(timeline([phase], title=HOSTILE, description=HOSTILE))
    for chart in charts:
        assert chart is not None
        for picture in (chart.wide, chart.narrow):
            assert "<script" not in picture and "&lt;scrip" in picture
            assert not re.search(r"<[^>]*\sonload=x[^>\"]*>", re.sub(r'"[^"]*"', "", picture))
    assert charts[0].legend == ((0, HOSTILE), (1, "b"))


def test_points_beyond_the_frame_are_told():
    marks = [
        Mark(x=float(n), y=1.1 - n / 100, kind="record", row=f"r{n}", name="n", said="")
        for n in range(4)
    ]
    far = Mark(x=1.0, y=3.0, kind="other", row="far", name="far", said="")
    drawn = point_chart([*marks, far], [], title="", description="All.", x=X, y_label="bpb")
    assert drawn is not None and drawn.description.startswith("All. 1 point lies beyond")
    assert drawn.wide.count("<circle") == 5


def test_a_waterfall_ends_at_what_is_left_of_the_limit():
    parts = [Part(name="code", amount=30.0), Part(name="weights", amount=50.0)]
    found = waterfall(parts, limit=100.0, title="", description="", say=lambda n: f"{n:.0f}")
    assert found is not None
    assert found.rows == (("code", "30"), ("weights", "50"), ("left of the limit", "20"))
    over = waterfall(parts, limit=60.0, title="", description="", say=str)
    assert over is not None and len(over.rows) == 2
