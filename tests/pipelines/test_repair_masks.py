"""Masks, fills and grain on tiny tensors whose right answer is known by hand."""

import numpy as np
import torch

from pipelines.repair_masks import (
    NO_SOURCE,
    close,
    dilate,
    feather,
    fill_from_surroundings,
    grow_mask,
    shift_detail,
    transfer_grain,
)


def hole_in_the_middle(size=32, radius=5):
    hole = torch.zeros(1, 1, size, size)
    hole[..., size // 2 - radius : size // 2 + radius, size // 2 - radius : size // 2 + radius] = 1
    return hole


def test_a_region_grows_from_its_peak_down_to_the_share_and_no_further():
    anomaly_map = torch.tensor([[1.0, 3.0, 5.0, 9.0, 5.0, 0.0, 6.0]])
    # seeds reach 8, regions 4: the 6 at the end is high enough but has no seed
    assert grow_mask(anomaly_map, 8.0, 0.5).tolist() == [[False, False, True, True, True, False, False]]


def test_the_halo_of_a_strong_peak_is_left_out_but_not_a_weaker_region_beside_it():
    anomaly_map = torch.tensor([[9.0, 30.0, 20.0, 9.0, 0.0, 9.0, 5.0]])
    assert grow_mask(anomaly_map, 8.0, 0.5).tolist() == [[False, True, True, False, False, True, True]]


def test_a_map_below_the_threshold_is_marked_at_its_largest_place():
    anomaly_map = torch.tensor([[1.0, 2.0, 6.0, 3.0]])
    assert grow_mask(anomaly_map, 100.0, 0.6).tolist() == [[False, False, True, False]]
    assert not grow_mask(-anomaly_map, 100.0, 0.6).any()
    assert grow_mask(anomaly_map, -torch.inf, 0.6).tolist() == [[False, False, True, False]]


def test_regions_that_touch_at_a_corner_grow_together():
    anomaly_map = torch.tensor([[9.0, 0.0], [0.0, 5.0]])
    assert grow_mask(anomaly_map, 8.0, 0.5).tolist() == [[True, False], [False, True]]


def test_closing_fills_a_ring_and_leaves_its_outline():
    ring = torch.zeros(20, 20, dtype=torch.bool)
    ring[5:14, 5:14] = True
    full = ring.clone()
    ring[7:12, 7:12] = False
    assert torch.equal(close(ring, 3), full)


def test_closing_takes_nothing_away_at_the_border():
    corner = torch.zeros(12, 12, dtype=torch.bool)
    corner[:4, :4] = True
    assert torch.equal(close(corner, 3), corner)
    near = torch.zeros(12, 12, dtype=torch.bool)
    near[2:6, 4:8] = True
    assert torch.equal(close(near, 3), near)


def test_dilation_grows_by_its_radius():
    mask = torch.zeros(9, 9)
    mask[4, 4] = 1
    grown = dilate(mask, 2)
    assert grown.sum() == 25
    assert grown[2:7, 2:7].all()
    assert torch.equal(dilate(mask, 0), mask)


def test_a_feathered_mask_is_full_on_the_mask_and_exactly_nothing_far_from_it():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[30:34, 30:34] = True
    soft = feather(mask, 6, 1.5)
    assert soft[30:34, 30:34].min() > 0.99
    assert soft.max() <= 1
    assert soft[:, 52:].abs().max() == 0  # 33 + 6 + 4 deviations = 45
    assert 0 < soft[32, 41] < 0.5


def test_a_hole_in_an_even_image_is_filled_evenly_and_the_rest_is_kept():
    sample = torch.full((1, 3, 32, 32), 0.25)
    hole = hole_in_the_middle()
    torch.testing.assert_close(fill_from_surroundings(sample + 5 * hole, hole), sample)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal((fill_from_surroundings(noise, hole) * (1 - hole)), noise * (1 - hole))


def test_a_hole_in_a_ramp_is_filled_between_its_sides():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    hole = hole_in_the_middle()
    filled = fill_from_surroundings(ramp + 9 * hole, hole)
    assert (filled - ramp).abs().max() < 0.2
    assert (ramp.mean() - ramp).abs()[hole.expand_as(ramp) > 0].max() > 0.28  # what a plain mean would miss by


def test_the_fill_takes_odd_sizes_and_an_image_that_is_all_hole():
    sample = torch.rand(1, 3, 37, 21)
    filled = fill_from_surroundings(sample, torch.ones(1, 1, 37, 21))
    assert torch.equal(filled, torch.zeros_like(sample))


def test_grain_comes_from_the_places_that_look_most_alike():
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1, 1, 64, 16, generator=generator)
    left, right = tile.repeat(1, 3, 1, 4), torch.zeros(1, 3, 64, 64)
    smooth = torch.cat([torch.full_like(left, -1.0), torch.full_like(right, 1.0)], dim=3)
    smooth += 0.1 * torch.sin(torch.arange(128) * torch.pi / 8)  # the network sees the period of the grain
    sample = smooth + torch.cat([left, right], dim=3)
    hole = torch.zeros(1, 1, 64, 128)
    hole[..., 20:44, 24:40] = 1
    found, offsets = transfer_grain(smooth.clone(), sample, smooth, hole)
    assert torch.equal(found[..., 64:], smooth[..., 64:])
    outside = (hole == 0).expand_as(found)
    assert torch.equal(found[outside], smooth[outside])
    inside = (hole > 0).expand_as(found)
    assert (found - smooth)[inside].std() > 0.3  # the rough half's grain, not the smooth half's

    assert offsets.shape == (2, 16, 32)
    assert (offsets[:, 5:11, 6:10] != NO_SOURCE).all()
    assert (offsets[:, 0, 20] == NO_SOURCE).all()
    rows, columns = torch.meshgrid(torch.arange(20, 44), torch.arange(24, 40), indexing="ij")
    sources = torch.stack([rows, columns]) + offsets[:, rows // 4, columns // 4]
    assert sources.min() >= 0
    assert sources[1].max() < 128
    assert (hole[0, 0][sources[0], sources[1]] == 0).all()

    flat = torch.zeros(1, 1, 64, 128)
    flat[..., 20:44, 88:104] = 1
    assert torch.equal(transfer_grain(smooth.clone(), sample, smooth, flat)[0], smooth)


def test_detail_is_fetched_from_where_the_grain_came_from():
    detail = np.arange(2 * 16 * 2 * 24, dtype=np.float32).reshape(32, 48, 1)  # a square of 16 x 24 at twice its size
    offsets = np.full((2, 4, 6), NO_SOURCE)
    offsets[:, 1, 2] = (-3, 5)  # rows 4 to 7, columns 8 to 11 of the square
    rows, columns = np.array([8, 15, 20]), np.array([16, 23, 16])
    found = shift_detail(detail, offsets, rows, columns, (2.0, 2.0))
    assert found[:, 0].tolist() == [detail[2, 26, 0], detail[9, 33, 0], 0]


def test_without_a_free_patch_the_image_stays_without_grain():
    sample = torch.rand(1, 3, 32, 32)
    resampled = torch.zeros_like(sample)
    found, offsets = transfer_grain(resampled, sample, resampled, torch.ones(1, 1, 32, 32))
    assert torch.equal(found, resampled)
    assert (offsets == NO_SOURCE).all()
