"""What images of the trained kind look like as a whole: distances against independent statements of them."""

import numpy as np
import pytest
import torch
from tiny_pipeline import MirroredImages, NegativeImages

from pipelines.feature_familiarity import FLAT, FeatureFamiliarity, image_statistics
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.fitting.familiarity import MARGIN, RIDGE, familiarity_limit, fit_familiarity


def drawn_features(count, seed, channels=5, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(count, channels, 1, 1, generator=generator)
    return level + shift + torch.randn(count, channels, 6, 6, generator=generator)


def test_the_distance_is_mahalanobis_with_a_ridge():
    features = drawn_features(40, 0)
    statistics = torch.cat([features.mean((2, 3)), features.flatten(2).std(2, correction=0)], dim=1)
    torch.testing.assert_close(image_statistics(features), statistics)
    familiarity = fit_familiarity(statistics)
    covariance = np.cov(statistics.T.numpy(), bias=True)
    covariance += RIDGE * np.trace(covariance) / 10 * np.eye(10)
    new = drawn_features(7, 1, shift=2.0)
    deviation = (image_statistics(new) - statistics.mean(0)).numpy()
    expected = np.sqrt(np.einsum("ni,ij,nj->n", deviation, np.linalg.inv(covariance), deviation) / 10)
    np.testing.assert_allclose(familiarity(new), expected, rtol=1e-4)


def test_few_images_are_enough_and_other_images_are_farther_than_new_ones_of_the_kind():
    familiarity = fit_familiarity(image_statistics(drawn_features(8, 0)))
    assert familiarity.config.num_axes == 7
    assert familiarity(drawn_features(20, 1)).max() < familiarity(drawn_features(20, 2, shift=6.0)).min()


def test_an_image_of_nothing_is_far_although_it_may_be_near_to_the_mean():
    """Where good parts differ much, their mean is itself an image of nothing."""
    familiarity = fit_familiarity(image_statistics(drawn_features(40, 0)))
    flat = familiarity.mean[:5].view(1, 5, 1, 1).expand(1, 5, 6, 6)
    hardly = flat + 0.05 * drawn_features(1, 3)
    assert familiarity(flat).item() > 100 * familiarity(drawn_features(40, 0)).max().item()
    assert familiarity(hardly).item() > 10 * familiarity(drawn_features(40, 0)).max().item()
    assert FLAT < 1  # what is as flat as one of them is measured as it is


def test_what_would_divide_by_nothing_is_refused():
    for name in ("axis_variances", "ridge"):
        familiarity = FeatureFamiliarity(4, 2)
        getattr(familiarity, name).zero_()
        with pytest.raises(ValueError, match="not above 0"):
            familiarity.check_values()
    with pytest.raises(ValueError, match="num_axes"):
        FeatureFamiliarity(4, 9)


def test_the_limit_lies_beyond_good_images_and_synthetic_defects(tiny_pipeline):
    calibration = tiny_pipeline.calibration
    good = torch.linspace(0.5, 1.5, calibration.config.num_ranked)
    assert familiarity_limit(calibration, good, torch.ones(100)) == pytest.approx(MARGIN * 1.5)
    assert familiarity_limit(calibration, good, torch.full((100,), 4.0)) == pytest.approx(MARGIN * 4)
    assert familiarity_limit(calibration, good, torch.full((100,), 4.0), first_limit=2.0) == 2.0
    assert familiarity_limit(calibration, 2 * good, torch.ones(100), first_limit=2.0) == pytest.approx(3.0)
    assert familiarity_limit(calibration, good * torch.nan, torch.ones(100)) is None


def test_good_and_defective_tiles_are_familiar_their_negatives_and_blanks_are_not(tiny_pipeline, tile_files):
    good, negatives = (kind(tile_files, 64) for kind in (MirroredImages, NegativeImages))
    result = tiny_pipeline([(good[index] + 1) / 2 for index in range(8)])
    assert not result.is_unfamiliar.any()
    assert (result.unfamiliarity > 0).all()
    other = tiny_pipeline([(negatives[index] + 1) / 2 for index in range(8)])
    assert other.is_unfamiliar.all()
    blank = tiny_pipeline([torch.full((3, 64, 64), value) for value in (0.0, 0.5, 1.0)])
    assert blank.is_unfamiliar.all()
    np.testing.assert_array_equal(result.is_unfamiliar, result.unfamiliarity > 1)


def test_a_checkpoint_without_it_says_that_it_cannot_tell(tiny_checkpoint, tile_files):
    loaded = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    again = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    assert torch.equal(loaded.familiarity.axes, again.familiarity.axes)
    again.register_modules(familiarity=None)
    again.calibration.register_to_config(unfamiliar_distance=None)
    result = again(torch.zeros(3, 64, 64))
    assert np.isnan(result.unfamiliarity).all()
    assert not result.is_unfamiliar.any()


def test_a_limit_without_a_distance_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match="no familiarity"):
        AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, familiarity=None)
