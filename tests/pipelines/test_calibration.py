"""What a calibration promises: conformal p-values and thresholds by hand, and its fit to held-out good images."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sentences import assert_sentence

from pipelines.anomaly_maps import blend
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import NUM_ALPHAS, ScoreCalibration, timestep_subsets

TIMESTEPS = [5, 50, 100]
RATES = ["0.001", "0.01", "0.02", "0.03", "0.05", "0.07", "0.1", "0.29", "0.57", "0.58", "0.99", "1"]


def calibration_of(scores, timesteps=(5,)):
    """A calibration filled by hand: the same good scores in every part and for every subset of timesteps."""
    calibration = ScoreCalibration(timesteps=list(timesteps), resolution=8, grid_size=2, num_ranked=len(scores))
    scores = torch.as_tensor(scores, dtype=torch.float32)
    calibration.part_scores.copy_(scores[:, None])
    calibration.map_maxima.copy_(scores)
    return calibration


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# p-values and thresholds, by hand


def test_p_value_is_the_share_of_good_scores_at_least_as_high_the_image_itself_included():
    calibration = calibration_of([3.0, 1.0, 4.0, 2.0])
    scores = torch.tensor([0.0, 1.0, 1.5, 2.0, 4.0, 4.5])
    p_values = calibration.p_value(scores, [5])
    assert p_values.dtype == torch.float64
    assert p_values.tolist() == [5 / 5, 5 / 5, 4 / 5, 4 / 5, 2 / 5, 1 / 5]


def test_thresholds_are_the_good_scores_that_the_rate_leaves_below():
    calibration = calibration_of([3.0, 1.0, 4.0, 2.0])
    for rate, expected in ((0.2, 4.0), (0.39, 4.0), (0.4, 3.0), (0.6, 2.0), (0.8, 1.0), (0.99, 1.0)):
        assert calibration.image_threshold(rate, [5]) == expected
        assert calibration.pixel_threshold(rate, 0.5, [5]) == expected


@pytest.mark.parametrize("count", [1, 3, 9, 19, 24, 99, 100, 199, 999])
def test_score_above_threshold_and_p_value_within_rate_are_the_same_at_every_rate(count):
    scores = uniform(count)
    calibration = calibration_of(scores)
    between = uniform(300, seed=1) * 1.2 - 0.1
    ranked = calibration.part_scores[0, :, 0]
    asked = torch.cat([between, ranked, ranked.nextafter(torch.tensor(2.0)), ranked.nextafter(torch.tensor(-1.0))])
    at_least = (scores[None] >= asked[:, None]).sum(dim=1)
    p_values = calibration.p_value(asked, [5])
    fractions = [Fraction(rate) for rate in RATES] + [Fraction(k, count + 1) for k in range(1, count + 2)]
    for rate in fractions:
        promised = max(rate, Fraction(1, count + 1))
        expected = 1 + at_least <= math.floor(promised * (count + 1))  # in exact arithmetic
        effective = calibration.effective_rate(float(rate))
        assert effective == pytest.approx(float(promised), abs=1e-12)
        assert torch.equal(asked > calibration.image_threshold(float(rate), [5]), expected), rate
        assert torch.equal(p_values <= effective + 1e-12, expected), rate


def test_verdicts_of_the_pipeline_follow_from_threshold_and_p_value_alike(tiny_pipeline):
    pipe = AnomalyScoringPipeline(
        tiny_pipeline.unet,
        tiny_pipeline.scheduler,
        tiny_pipeline.feature_extractor,
        calibration=calibration_of(uniform(99)),
        timesteps=[5],
    )
    scores = torch.cat([pipe.calibration.part_scores[0, :, 0], 1.2 * uniform(50, seed=1)])
    maps = [torch.tensor([[-10.0, 10.0]])] * len(scores)
    for rate in (0.01, 0.05, 0.07, 0.29, 0.57, 1.0):
        verdicts = pipe.decide(maps, scores, false_alarm_rate=rate)
        above = (scores > verdicts["image_threshold"]).numpy()
        assert verdicts["is_anomalous"].tolist() == above.tolist()
        assert above.sum() >= 1
        masks = [mask.tolist() for mask in verdicts["pred_mask"]]
        assert masks == [[[bool(anomalous) and rate == 1.0, bool(anomalous)]] for anomalous in above]


def test_smallest_promised_rate_is_one_in_n_plus_one_and_the_default_one_percent():
    few, many = calibration_of(uniform(24)), calibration_of(uniform(999))
    assert few.effective_rate() == few.effective_rate(0.01) == few.effective_rate(1e-9) == 1 / 25
    assert few.effective_rate(0.2) == 0.2
    assert many.effective_rate() == 0.01
    assert many.effective_rate(0.002) == 0.002
    assert many.effective_rate(0.0001) == 1 / 1000
    # the threshold of a rate that cannot be promised is that of the smallest that can
    assert few.image_threshold(1e-9, [5]) == few.part_scores.max().item()


def test_rate_one_rejects_everything():
    calibration = calibration_of(uniform(9))
    assert calibration.image_threshold(1.0, [5]) == float("-inf")
    assert calibration.pixel_threshold(1.0, 0.5, [5]) == float("-inf")
    assert (calibration.p_value(torch.tensor([-1e6, 0.5, 1e6]), [5]) <= calibration.effective_rate(1.0)).all()


@pytest.mark.parametrize("distribution", ["continuous", "with ties"])
def test_of_exchangeable_good_images_no_more_than_the_rate_is_rejected(distribution):
    count, trials = 19, 2000
    scores = torch.randn(trials, count + 1, generator=torch.Generator().manual_seed(0))
    if distribution == "with ties":
        scores = scores.mul(2).round()
    calibration = calibration_of(scores[0, 1:])
    p_values = torch.empty(trials, dtype=torch.float64)
    for trial in range(trials):
        calibration.part_scores.copy_(scores[trial, 1:, None])
        p_values[trial] = calibration.p_value(scores[trial, :1], [5])
    for rate in (0.05, 0.1, 0.12, 0.5):
        rejected = (p_values <= rate + 1e-12).double().mean().item()
        sigma = (rate * (1 - rate) / trials) ** 0.5
        assert rejected <= rate + 3 * sigma
        if distribution == "continuous" and rate != 0.12:
            assert rejected >= rate - 3 * sigma


def test_between_two_alphas_of_the_table_good_map_values_are_never_understated():
    count = 30
    kl, feature_error = (torch.randn(count, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    calibration = calibration_of(torch.zeros(count))
    for row, alpha in enumerate(np.linspace(0, 1, NUM_ALPHAS)):
        calibration.map_maxima[0, row] = blend(kl, feature_error, alpha).amax(dim=(1, 2))
    strictly = 0
    for alpha in [*np.linspace(0, 1, NUM_ALPHAS), *uniform(40).tolist(), 1e-9, 1 - 1e-9]:
        true_maxima = blend(kl, feature_error, alpha).amax(dim=(1, 2)).sort(descending=True).values
        for k in range(1, count + 1):
            pixel_threshold = calibration.pixel_threshold(k / (count + 1), alpha, [5])
            assert true_maxima[k - 1] - 1e-5 <= pixel_threshold <= true_maxima[k - 1] + 0.1
            strictly += pixel_threshold > true_maxima[k - 1] + 1e-5
    assert strictly > 0


@pytest.mark.parametrize(
    ("image_parts", "largest", "mean"),
    [
        (None, 3, 0.5),
        ([True, True, True, True], 3, 0.5),
        ([True, True, False, False], 3, 1),
        ([False, True, False, True], -1, -1.5),
        ([False, False, False, True], -2, -2),
    ],
)
@pytest.mark.parametrize("image_rule", ["max", "mean"])
def test_the_score_is_the_largest_or_the_mean_of_the_components_that_may_decide(image_parts, image_rule, largest, mean):
    config = {"timesteps": [5], "resolution": 8, "grid_size": 10, "map_weights": [1, 0, 0]}
    calibration = ScoreCalibration(**config, image_parts=image_parts, image_rule=image_rule)
    expected = largest if image_rule == "max" else mean
    raw = torch.tensor([7.0, 0.0, 10.0, -1.0])
    calibration.part_scores.copy_(raw)
    calibration.part_score_mean.copy_(torch.tensor([1.0, 1.0, 0.0, 1.0]))
    calibration.part_score_std.copy_(torch.tensor([2.0, 1.0, 5.0, 1.0]))
    # standardised: KL 3, feature error -1, references 2 and -2
    assert calibration.image_threshold(0.5, [5]) == expected
    components = torch.full((1, 4, 10, 10), -9.0)  # one cell of a hundred is the worst hundredth
    for part, place in enumerate(((2, 3), (5, 5), (9, 9), (0, 7))):
        components[0, part][place] = raw[part]
    assert calibration.image_score(components, [5]).tolist() == [expected]


@pytest.mark.parametrize("image_parts", [[True], [True] * 5, [False] * 4, [1, 0, 0, 0], "all", [0.5] * 4])
def test_components_that_cannot_decide_get_one_sentence(image_parts):
    with pytest.raises(ValueError, match="image_parts") as error:
        ScoreCalibration(map_weights=[1, 0, 0], image_parts=image_parts)
    assert_sentence(str(error.value), "accepted")


def test_a_rule_that_is_not_known_gets_one_sentence():
    with pytest.raises(ValueError, match="image_rule") as error:
        ScoreCalibration(image_rule="median")
    assert_sentence(str(error.value), "median", "max and mean")


def test_scores_of_a_subset_of_timesteps_come_from_its_own_row_in_any_order():
    calibration = calibration_of([0.0], TIMESTEPS)
    expected = [(5,), (50,), (100,), (5, 50), (5, 100), (50, 100), (5, 50, 100)]
    assert timestep_subsets(TIMESTEPS) == timestep_subsets([100, 5, 50]) == expected
    for row in range(len(expected)):
        calibration.part_scores[row] = row
        calibration.map_maxima[row] = 10 * row
    for row, subset in enumerate(expected):
        for order in (list(subset), list(reversed(subset))):
            assert calibration.image_threshold(0.5, order) == row
            assert calibration.pixel_threshold(0.5, 0.5, order) == 10 * row
            assert calibration.p_value(torch.tensor([row, row + 0.5]), order).tolist() == [1, 0.5]


# dtype


# the fit


# the command
