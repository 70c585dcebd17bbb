"""Curves as SVG: what is drawn is where it belongs, and names are text."""

import re
from xml.etree import ElementTree

import pytest

from rendering.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curves_svg, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 1000.0, [0.0, 250.0, 500.0, 750.0, 1000.0]),
        (-0.03, 0.07, [-0.025, 0.0, 0.025, 0.05]),
        (3.0, 13.0, [5.0, 7.5, 10.0, 12.5]),
        (1e-5, 9e-5, [2e-5, 4e-5, 6e-5, 8e-5]),
    ],
)
def test_ticks_are_round_and_within_the_range(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def points_of(svg):
    root = ElementTree.fromstring(svg)
    lines = [element.get("points") for element in root.iter("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_values_are_drawn_at_their_places():
    first, second = points_of(curves_svg("x", [0, 50, 100], {"a": [0, 1, 0.5], "b": [1, 1, 2]}, (0.0, 1.0)))
    right, floor, middle = WIDTH - RIGHT, HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    assert first == [(LEFT, floor), (middle, TOP), (right, (floor + TOP) / 2)]
    assert second == [(LEFT, TOP), (middle, TOP), (right, TOP)]  # beyond the range: at its end


@pytest.mark.parametrize(("steps", "values"), [([7], [0.5]), ([1, 2], [3.0, 3.0]), ([1, 2], [0.0, 0.0])])
def test_one_point_and_a_flat_curve_are_drawn_in_the_middle(steps, values):
    (points,) = points_of(curves_svg("x", steps, {"a": values}))
    assert {y for _, y in points} == {(HEIGHT - BOTTOM + TOP) / 2}
    assert all(LEFT <= x <= WIDTH - RIGHT for x, _ in points)


def test_names_are_text():
    hostile = '<script>alert(1)</script>&"'
    svg = curves_svg(hostile, [1, 2], {hostile: [1, 2], "b": [2, 1]})
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == hostile
    assert [text.text for text in root.iter("text")].count(hostile) == 2


def test_a_long_curve_has_no_dots_and_a_short_one_has():
    assert not re.search("<circle", curves_svg("x", range(100), {"a": range(100)}))
    assert curves_svg("x", range(5), {"a": range(5)}).count("<circle") == 5
