"""Metrics against values worked out by hand, scikit-learn and a brute-force loop over thresholds."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score

from pipelines.anomaly_maps import resize_map
from training.evaluation.metrics import image_metrics, per_region_overlap, pixel_metrics
from training.evaluation.pixel_groups import metrics_of_groups, nearest_mask


def brute_force_pro(masks, maps, limit):
    """PRO as it is defined: one loop over thresholds, one over regions."""
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        overlaps, false_positives, good = [], 0, 0
        for mask, anomaly_map in zip(masks, maps, strict=True):
            above = anomaly_map >= threshold
            components, count = label(mask, structure=np.ones((3, 3)))
            overlaps += [above[components == region].mean() for region in range(1, count + 1)]
            false_positives += (above & ~mask).sum()
            good += (~mask).sum()
        points.append((false_positives / good, float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("levels", [4, 1000])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro_equals_the_brute_force_loop(levels, limit):
    rng = np.random.default_rng(levels)
    masks = [rng.random((13, 9)) < 0.15, rng.random((7, 20)) < 0.1, np.zeros((5, 5), bool)]
    maps = [(rng.integers(0, levels, m.shape) / levels + 0.3 * m).astype(np.float32) for m in masks]
    assert per_region_overlap(masks, maps, limit) == pytest.approx(brute_force_pro(masks, maps, limit), abs=1e-9)


def test_pro_counts_diagonal_neighbours_as_one_region_and_weighs_regions_evenly():
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[1, 1] = True  # one region of two pixels
    mask[5:8, 5:8] = True  # one of nine
    found_small = np.where(np.arange(64).reshape(8, 8) < 10, mask, False).astype(np.float32)
    # The small region is found with no false positive, the large one only when everything is above the threshold:
    # overlap rises from 1/2 at rate 0 to 1 at rate 1, so up to 0.3 its mean is 0.5 + 0.5 * 0.15.
    assert per_region_overlap([mask], [found_small], 0.3) == pytest.approx(0.575)


def test_a_perfect_map_scores_one_everywhere():
    mask = np.zeros((16, 16), bool)
    mask[3:6, 3:9] = True
    metrics = pixel_metrics([mask], [mask.astype(np.float32)])
    assert metrics == pytest.approx({"pixel_auroc": 1.0, "pixel_ap": 1.0, "pro": 1.0})


@pytest.mark.parametrize("levels", [1, 5, 10**6])
def test_pixel_metrics_pool_images_of_different_sizes_as_scikit_learn_does(levels):
    rng = np.random.default_rng(levels)
    masks = [rng.random(size) < share for size, share in (((60, 70), 0.3), ((9, 41), 0.02), ((30, 30), 0))]
    maps = [(np.floor(levels * rng.random(m.shape)) / levels + 0.2 * m).astype(np.float32) for m in masks]
    truth, values = (np.concatenate([each.ravel() for each in several]) for several in (masks, maps))
    metrics = pixel_metrics(masks, maps)
    assert metrics["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    assert metrics["pixel_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-6)
    assert metrics["pro"] == pytest.approx(pro_of_every_pixel(masks, maps, 0.3), abs=1e-6)


def pro_of_every_pixel(masks, maps, limit):
    """PRO with every pixel of the maps sorted, good ones too."""
    gains, values, regions = [], [], 0
    for mask, anomaly_map in zip(masks, maps, strict=True):
        components, count = label(mask, structure=np.ones((3, 3)))
        areas = np.bincount(components.ravel(), minlength=count + 1).astype(float)
        areas[0] = np.inf
        gains.append((1 / areas)[components].ravel())
        values.append(anomaly_map.ravel())
        regions += count
    gains, values = np.concatenate(gains), np.concatenate(values)
    order = np.argsort(-values, kind="stable")
    gains, values = gains[order], values[order]
    last_of_value = np.append(values[1:] != values[:-1], True)
    y = np.append(0, np.cumsum(gains)[last_of_value] / regions)
    x = np.append(0, np.cumsum(gains == 0)[last_of_value] / np.count_nonzero(gains == 0))
    end = np.searchsorted(x, limit, side="right")
    return np.trapezoid(np.append(y[:end], np.interp(limit, x, y)), np.append(x[:end], limit)) / limit


@pytest.mark.parametrize("kinds", [["good", "crack", "good", "hole", "crack", "hole"], ["good", "crack"] * 3])
def test_groups_of_images_measure_what_each_group_alone_does(kinds):
    rng = np.random.default_rng(0)
    sizes = [(20 + 3 * place, 31 - place) for place in range(len(kinds))]
    masks = [(rng.random(size) < 0.05) & (kind != "good") for kind, size in zip(kinds, sizes, strict=True)]
    maps = [rng.random((24, 24)).astype(np.float32) for _ in kinds]
    masks[-1] = None  # nobody has marked it
    measured = metrics_of_groups(kinds, masks, maps, 24)
    assert measured.keys() == {"all", *kinds} - {"good"}
    for group, metrics in measured.items():
        chosen = [place for place, kind in enumerate(kinds[:-1]) if group == "all" or kind in ("good", group)]
        square = pixel_metrics([nearest_mask(masks[i], 24) for i in chosen], [maps[i] for i in chosen])
        resized = [resize_map(torch.from_numpy(maps[i]), sizes[i]).numpy() for i in chosen]
        native = pixel_metrics([masks[i] for i in chosen], resized)
        assert metrics == pytest.approx(square | {f"native_{name}": value for name, value in native.items()})


def test_groups_that_cannot_be_measured_are_nan_and_native_size_can_be_left_out():
    mask = np.eye(8, dtype=bool)
    masks = [np.zeros((8, 8), bool), mask, None]
    measured = metrics_of_groups(["good", "crack", "hole"], masks, [np.ones((8, 8), np.float32)] * 3, 8, native=False)
    assert measured["crack"] == measured["all"] == pytest.approx({"pixel_auroc": 0.5, "pixel_ap": 1 / 16, "pro": 0.15})
    assert np.isnan(list(measured["hole"].values())).all()


def test_image_metrics_by_hand():
    metrics = image_metrics([False, False, True, True], [0.1, 0.4, 0.3, 0.9], [False, True, False, True])
    assert metrics == pytest.approx(
        {"image_auroc": 0.75, "image_f1": 0.5, "false_alarm_rate": 0.5, "detection_rate": 0.5}
    )


def test_metrics_without_defects_are_nan_not_a_guess():
    assert np.isnan(pixel_metrics([np.zeros((4, 4), bool)], [np.ones((4, 4))])["pro"])
    assert np.isnan(image_metrics([False], [1.0], [True])["image_auroc"])
    with pytest.raises(ValueError, match="holds NaN"):
        pixel_metrics([np.eye(4, dtype=bool)], [np.full((4, 4), np.nan)])
    with pytest.raises(ValueError, match="at least one defect region"):
        per_region_overlap([np.zeros((4, 4), bool)], [np.ones((4, 4))])
