"""What the calibration benchmark says of a promise: kept and broken ones, its intervals, its test of uniformity."""

import numpy as np
import pytest
import torch
from measurements import images
from scipy.stats import binomtest, kstest

from benchmarks.calibration import format_table
from benchmarks.promise_statistics import (
    RATES,
    distance_from_uniform,
    independent_images,
    split_p_values,
    summarize,
    wilson_interval,
)
from pipelines.measurement import Measurement
from pipelines.score_calibration import ScoreCalibration

CALIBRATION = ScoreCalibration(timesteps=[5], resolution=8, grid_size=4)


@pytest.fixture(scope="module")
def redrawn():
    """160 exchangeable images, split anew each time."""
    return split_p_values(CALIBRATION, images(160, seed=0), splits=200)


def new_pool(seed, shift=0.0, splits=30):
    """160 images that calibrate, 60 others that are new in every split."""
    new = images(60, seed + 1000, shift)
    return split_p_values(CALIBRATION, images(160, seed), new, splits=splits)


def test_parts_have_the_sizes_that_are_documented(redrawn):
    config = redrawn.calibration.config
    assert redrawn.p_values.shape == redrawn.smoothed.shape == (200, 40)
    assert (config.num_fitted, config.num_ranked) == (48, 72)
    pool = new_pool(0)
    assert pool.p_values.shape == (30, 60)
    assert (pool.calibration.config.num_fitted, pool.calibration.config.num_ranked) == (64, 96)


def test_exchangeable_images_are_rejected_as_often_as_the_ranks_allow_and_never_more_than_promised(redrawn):
    summary = summarize(redrawn)
    assert [row["asked"] for row in summary["rates"]] == list(RATES)
    for row in summary["rates"]:
        assert row["promised"] == max(row["asked"], 1 / 73)
        assert row["exact"] == pytest.approx(int(row["promised"] * 73 + 1e-9) / 73)
        low, high = row["interval"]
        assert low <= row["exact"] <= high  # fixed seed: 200 splits leave little to chance
        assert low < row["measured"] < high < row["measured"] + 0.02
        assert row["kept"]
    assert summary["uniformity"]["share_below"] == pytest.approx(0.05, abs=0.04)
    assert 0.3 < summary["uniformity"]["median"] < 0.7


def test_other_images_break_the_promise_and_the_table_says_so():
    kept, broken = summarize(new_pool(0)), summarize(new_pool(0, shift=1.5))
    assert all(row["kept"] for row in kept["rates"])
    assert kept["uniformity"]["median"] > 0.05
    for row in broken["rates"]:
        assert not row["kept"]
        assert row["measured"] > row["interval"][0] > row["promised"]
    assert broken["uniformity"]["median"] < 0.001
    assert broken["uniformity"]["share_below"] == 1
    table = format_table({"test/good": broken})
    assert table.count("| broken |") == len(broken["rates"])
    assert "kept" not in table
    assert "| test/good | 0.100 | 0.100 | 0.093 |" in table  # 9 of 97
    assert "64 images fitted, 96 ranked, 60 new" in table


def test_images_that_score_lower_keep_the_promise_but_are_not_uniform():
    summary = summarize(new_pool(0, shift=-1.5))
    assert all(row["kept"] for row in summary["rates"])
    assert summary["uniformity"]["median"] < 0.001


def test_rates_too_small_to_be_promised_are_reported_once_as_the_smallest():
    pool = split_p_values(CALIBRATION, images(20, seed=0), splits=5)
    assert pool.calibration.config.num_ranked == 9
    rows = summarize(pool)["rates"]
    assert [(row["asked"], row["promised"], row["exact"]) for row in rows] == [(0.01, 0.1, 0.1), (0.2, 0.2, 0.2)]


def test_equal_scores_never_reject_and_smoothing_makes_them_uniform():
    equal = Measurement(torch.ones(40, 1, 4, 4), torch.ones(40, 1, 4, 4), torch.ones(40, 0, 4, 4), torch.ones(40))
    pool = split_p_values(CALIBRATION, equal, splits=40)
    assert (pool.p_values == 1).all()
    assert kstest(pool.smoothed.flatten().numpy(), "uniform").pvalue > 0.01


def test_smoothed_p_values_lie_within_one_rank_below_the_p_values(redrawn):
    below = redrawn.p_values - redrawn.smoothed
    assert below.min() >= 0
    assert below.max() <= 1 / 73 + 1e-9
    assert below.mean().item() == pytest.approx(0.5 / 73, rel=0.05)


def test_splits_follow_the_seed_alone_and_leave_the_calibration_as_it_is():
    before = {name: tensor.clone() for name, tensor in CALIBRATION.state_dict().items()}
    first, again, other = (split_p_values(CALIBRATION, images(40, 0), splits=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.smoothed, again.smoothed)
    assert not torch.equal(first.p_values, other.p_values)
    for name, tensor in CALIBRATION.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_wilson_interval_is_that_of_scipy():
    for rejected, count in ((0, 20), (3, 50), (40, 40)):
        expected = binomtest(rejected, count).proportion_ci(method="wilson")
        assert wilson_interval(rejected / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_a_split_counts_as_the_independent_images_that_its_variance_says(redrawn):
    by_split = (redrawn.p_values <= 0.2).double().mean(dim=1)
    exact = 14 / 73
    variance = by_split.var().item()  # splits are independent given the images
    assert exact * (1 - exact) / variance == pytest.approx(independent_images(redrawn) / 200, rel=0.25)
    assert independent_images(redrawn) / 200 < 40  # new images of one split share their threshold


def test_intervals_of_the_same_new_images_hold_the_exact_rate_in_most_worlds():
    held = []
    for seed in range(40):
        pool = new_pool(seed, splits=4)
        for k in (1, 4, 9, 19):
            exact = k / 97
            measured = (pool.p_values <= exact + 1e-12).double().mean().item()
            low, high = wilson_interval(measured, independent_images(pool))
            held.append(low <= exact <= high)
    assert np.mean(held) > 0.9


def test_distance_from_uniform_is_that_of_scipy():
    values = torch.rand(3, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 1.5
    expected = [kstest(row.numpy(), "uniform").statistic for row in values]
    assert distance_from_uniform(values).tolist() == pytest.approx(expected)
