"""What the page draws: colours that mean the same in every image, outlines, the scale."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from rendering.heat_map import MAX_OPACITY, OUTLINE_COLOR, PLASMA, legend, outline, overlay, shrink


def test_average_good_map_leaves_the_image_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, np.zeros((5, 7), np.float32), 3.0), image)
    np.testing.assert_array_equal(overlay(image, np.full((5, 7), -2.0), 3.0), image)


def test_colour_is_fixed_by_the_value_and_ends_at_saturation():
    black = np.zeros((1, 4, 3), np.uint8)
    colours = overlay(black, np.array([[1.5, 3.0, 4.5, 300.0]]), 3.0)[0]
    np.testing.assert_array_equal(colours[1], np.rint(MAX_OPACITY * PLASMA[-1]))
    np.testing.assert_array_equal(colours[2:], colours[[1, 1]])
    np.testing.assert_array_equal(colours[0], np.rint(MAX_OPACITY / 2 * (PLASMA[4] + PLASMA[5]) / 2))
    alone = overlay(black[:, :1], np.array([[1.5]]), 3.0)[0, 0]
    np.testing.assert_array_equal(colours[0], alone)


def test_overlay_refuses_a_map_of_another_size_and_a_scale_without_length():
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="must agree"):
        overlay(image, np.zeros((3, 2)), 1.0)
    with pytest.raises(ValueError, match="above 0"):
        overlay(image, np.zeros((2, 3)), 0.0)


def test_outline_is_the_border_of_the_mask_and_nothing_else():
    image = np.full((7, 9, 3), 50, np.uint8)
    mask = np.zeros((7, 9), bool)
    mask[1:6, 2:7] = True
    drawn = outline(image, mask, (1, 2, 3))
    border = mask.copy()
    border[2:5, 3:6] = False
    assert (drawn[border] == (1, 2, 3)).all()
    assert (drawn[~border] == 50).all()
    assert (image == 50).all()
    np.testing.assert_array_equal(outline(image, np.zeros_like(mask)), image)


def test_outline_is_closed_at_the_images_edge_and_as_wide_as_asked():
    drawn = outline(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), width=2)
    lined = (drawn == OUTLINE_COLOR).all(axis=-1)
    assert lined.sum() == 64 - 16
    assert not lined[2:6, 2:6].any()


@pytest.mark.parametrize("width", [1, 2, 3, 7, 40])
def test_outline_leaves_what_is_eroded_with_a_square(width):
    generator = np.random.default_rng(width)
    mask = binary_erosion(binary_dilation(generator.random((60, 47)) > 0.9, np.ones((3, 3)), iterations=4))
    drawn = (outline(np.zeros((60, 47, 3), np.uint8), mask, width=width) == OUTLINE_COLOR).all(axis=-1)
    np.testing.assert_array_equal(drawn, mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=width))


def test_legend_runs_from_grey_to_the_saturated_colour_and_marks_the_threshold():
    bar = legend(saturation=8.0, threshold=2.0, height=4, width=101)
    assert bar.shape == (4, 101, 3)
    assert (bar[:, 0] == 128).all()
    np.testing.assert_array_equal(bar[0, -1], np.rint(128 + MAX_OPACITY * (PLASMA[-1] - 128)))
    marked = (bar == OUTLINE_COLOR).all(axis=(0, 2))
    assert np.flatnonzero(marked).tolist() == [23, 24, 25, 26, 27]


def test_shrink_keeps_small_images_and_halves_large_ones_with_their_maps():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 200
    anomaly_map = np.arange(32, dtype=np.float32).reshape(4, 8)
    for kept, given in zip(shrink(image, anomaly_map, 8), (image, anomaly_map), strict=True):
        np.testing.assert_array_equal(kept, given)
    half, half_map = shrink(image, anomaly_map, 4)
    np.testing.assert_array_equal(half[..., 0], [[0, 0, 200, 200]] * 2)
    np.testing.assert_allclose(half_map, anomaly_map.reshape(2, 2, 4, 2).mean(axis=(1, 3)))
