"""Sheets: what was found and what is labelled can be told apart, and the sheet says which is which."""

import numpy as np
import pytest
from PIL import Image

from rendering.heat_map import OUTLINE_COLOR
from rendering.sheet import LABEL_COLORS, map_sheet, outline_legend, outlined, view_sheet

CELL = 64
BOX = np.zeros((32, 32), bool)
BOX[8:20, 10:24] = True


def has(image, color):
    return (np.asarray(image) == color).all(axis=-1)


def sheet_of(mask, found):
    image = np.full((32, 32, 3), 90, np.uint8)
    maps = [np.zeros((32, 32), np.float32)] * 3
    return map_sheet([("part", image, mask, found, maps)], ("input", "truth", "KL", "features", "blend"), 1.0, CELL)


@pytest.mark.parametrize(("found", "is_found"), [(np.zeros_like(BOX), False), (BOX, True)])
def test_a_missed_defect_does_not_look_like_one_that_was_found(found, is_found):
    blend = np.asarray(sheet_of(BOX, found))[-CELL - 12 :, -CELL - 6 :]
    assert has(blend, OUTLINE_COLOR).any() == is_found
    assert has(blend, LABEL_COLORS[0]).any()
    assert has(blend, LABEL_COLORS[1]).any()


def test_both_lines_of_the_same_region_stay_in_sight_and_lie_where_it_is():
    drawn = outlined(Image.fromarray(np.full((32, 32, 3), 90, np.uint8)), BOX, BOX)
    label = has(drawn, LABEL_COLORS[0]) | has(drawn, LABEL_COLORS[1])
    found = has(drawn, OUTLINE_COLOR)
    assert not (label & BOX).any()
    assert not (found & ~BOX).any()
    assert label[6:8, 8:26].all()
    assert found[8:10, 10:24].all()


def test_a_label_that_covers_the_image_is_seen_and_a_thin_one_survives_shrinking():
    ground = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    assert has(outlined(ground, labelled=np.ones((32, 32), bool)), LABEL_COLORS[0]).any()
    thin = np.zeros((400, 400), bool)
    thin[200, 50:350] = True
    assert has(outlined(ground, labelled=thin), LABEL_COLORS[0]).sum() > 10


def test_the_legend_stands_above_the_columns_and_names_only_what_is_drawn():
    (found, _), (labelled, text) = outline_legend("synthetic defect")
    assert has(found, OUTLINE_COLOR).any()
    assert has(labelled, LABEL_COLORS[0]).any()
    assert text.endswith("synthetic defect")
    assert len(outline_legend(judged=False)) == 1
    rows = [("part", [Image.new("RGB", (CELL, CELL))])]
    plain, explained = (np.asarray(view_sheet(rows, ("image",) * 9, CELL, legend)) for legend in ((), outline_legend()))
    added = len(explained) - len(plain)
    np.testing.assert_array_equal(explained[added:], plain)
    assert has(explained[:added], OUTLINE_COLOR).any()
    assert has(explained[:added], LABEL_COLORS[0]).any()
