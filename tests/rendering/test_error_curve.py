"""The curve of both errors: stairs where they belong, the chosen rate marked."""

from xml.etree import ElementTree

import pytest

from rendering.error_curve import (
    BOTTOM,
    DEFECTS_ACCEPTED,
    GOOD_REJECTED,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    error_curve_svg,
)


def errors_at(rate):
    return {DEFECTS_ACCEPTED: 0.5 if rate < 0.11 else 0.2, GOOD_REJECTED: 0.0 if rate < 0.16 else 0.1}


def test_both_errors_are_stairs_and_the_chosen_rate_is_marked():
    root = ElementTree.fromstring(error_curve_svg(errors_at, 0.12, (0.02, 0.22)))
    missed, rejected = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in root.iter("polyline")
    ]
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def place(rate, share):
        return LEFT + (rate - 0.02) / 0.2 * (right - LEFT), floor - share * (floor - TOP)

    assert missed[0] == pytest.approx(place(0.02, 0.5), abs=0.1)
    assert missed[1] == pytest.approx(place(0.11, 0.5), abs=1)
    assert missed[2] == pytest.approx(place(0.11, 0.2), abs=1)
    assert missed[3] == pytest.approx(place(0.22, 0.2), abs=0.1)
    assert rejected[-1] == pytest.approx(place(0.22, 0.1), abs=0.1)
    centres = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter("circle")]
    assert centres == [pytest.approx(place(0.12, 0.2), abs=0.1), pytest.approx(place(0.12, 0), abs=0.1)]
    said = [text.text for text in root.iter("text")]
    assert f"{DEFECTS_ACCEPTED}: 20 %" in said
    assert f"{GOOD_REJECTED}: 0 %" in said


def test_an_error_that_was_not_measured_is_not_drawn():
    svg = error_curve_svg(lambda rate: {GOOD_REJECTED: rate}, 0.2, (0.05, 0.2))
    assert DEFECTS_ACCEPTED not in svg
    assert len(list(ElementTree.fromstring(svg).iter("polyline"))) == 1
