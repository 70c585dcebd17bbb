"""Metrics against values worked out by hand, scikit-learn and a brute-force loop over thresholds."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from training.evaluation.metrics import image_metrics, per_region_overlap, pixel_metrics


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


def test_pixel_metrics_pool_images_of_different_sizes():
    rng = np.random.default_rng(0)
    masks = [rng.random((6, 7)) < 0.3, rng.random((9, 4)) < 0.3]
    maps = [rng.random(m.shape) + m for m in masks]
    pooled = roc_auc_score(np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps]))
    assert pixel_metrics(masks, maps)["pixel_auroc"] == pytest.approx(pooled, abs=1e-6)


def test_image_metrics_by_hand():
    metrics = image_metrics([False, False, True, True], [0.1, 0.4, 0.3, 0.9], [False, True, False, True])
    assert metrics == pytest.approx(
        {"image_auroc": 0.75, "image_f1": 0.5, "false_alarm_rate": 0.5, "detection_rate": 0.5}
    )


def test_metrics_without_defects_are_nan_not_a_guess():
    assert np.isnan(pixel_metrics([np.zeros((4, 4), bool)], [np.ones((4, 4))])["pro"])
    assert np.isnan(image_metrics([False], [1.0], [True])["image_auroc"])
    with pytest.raises(ValueError, match="at least one defect region"):
        per_region_overlap([np.zeros((4, 4), bool)], [np.ones((4, 4))])
