"""Numbers beside the places of a mask: seen on any image, off the defect, and off each other."""

import numpy as np
import pytest

from rendering.numbering import draw_numbers
from rendering.regions import find_regions


def numbered(mask, grey=128):
    """An image of one grey with the mask's places numbered, and the pixels that were drawn over."""
    image = np.full((*mask.shape, 3), grey, np.uint8)
    regions = find_regions(mask, np.ones(mask.shape, np.float32))
    places = [tuple(region[key] for key in ("x", "y", "width", "height")) for region in regions]
    drawn = draw_numbers(image, mask, places)
    return drawn, (drawn != image).any(axis=-1)


def with_places(*places, size=(300, 200)):
    mask = np.zeros(size, bool)
    for top, left, height, width in places:
        mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_number_is_seen_on_any_grey_and_covers_nothing_of_its_place(grey):
    mask = with_places((100, 80, 20, 30))
    drawn, changed = numbered(mask, grey)
    assert changed.any()
    assert not (changed & mask).any()
    levels = drawn[changed].astype(int).max(axis=-1)
    assert levels.max() - levels.min() > 200


@pytest.mark.parametrize("corner", [(0, 0), (0, 180), (280, 0), (280, 180)])
def test_a_number_stays_inside_the_image_and_near_its_place(corner):
    mask = with_places((*corner, 20, 20))
    _, changed = numbered(mask)
    assert changed.sum() > 60
    assert not (changed & mask).any()
    rows, columns = np.nonzero(changed)
    assert np.hypot(rows - corner[0] - 10, columns - corner[1] - 10).max() < 60


def test_numbers_keep_off_other_places_and_each_other():
    mask = with_places((100, 60, 30, 20), (100, 85, 25, 20), (100, 110, 20, 20))
    _, changed = numbered(mask)
    assert not (changed & mask).any()
    alone = sum(numbered(with_places(place))[1].sum() for place in [(100, 60, 30, 20)])
    assert changed.sum() > 2.5 * alone


def test_a_mask_that_leaves_no_room_is_numbered_all_the_same_and_small_images_too():
    _, changed = numbered(np.ones((300, 200), bool))
    assert changed.any()
    drawn, changed = numbered(np.ones((6, 5), bool))
    assert drawn.shape == (6, 5, 3)
    assert changed.any()


def test_the_image_given_is_left_as_it_is():
    image = np.zeros((50, 50, 3), np.uint8)
    draw_numbers(image, np.zeros((50, 50), bool), [(10, 10, 5, 5)])
    assert not image.any()
