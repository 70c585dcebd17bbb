"""What good features look like: Gaussians and memory against independent statements of them, and fitted to tiles."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import mahalanobis

from pipelines.anomaly_maps import resize_map
from pipelines.feature_gaussian import LARGEST_CODE, FeatureGaussian, by_cell
from pipelines.feature_memory import KEPT_AT_ONCE, FeatureMemory
from pipelines.image_preprocessing import preprocess
from pipelines.model_checks import check_fit
from pipelines.score_calibration import REFERENCES
from training.data.good_images import GoodImages
from training.fitting.feature_references import (
    PRIOR_IMAGES,
    REGULARIZATION,
    fill_memory,
    fit_feature_reference,
    greedy_coreset,
    shrink,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def covariances(count, channels, seed=0):
    """Positive definite matrices."""
    factors = normal(count, channels, 2 * channels, seed=seed)
    return factors @ factors.transpose(1, 2) / (2 * channels)


# the components


def test_gaussian_distance_is_the_mahalanobis_distance_of_the_cell_a_place_lies_in():
    gaussian = FeatureGaussian(num_features=5, grid_size=6, num_cells=3)
    gaussian.mean.copy_(normal(5, 6, 6, seed=1))
    covariance = covariances(9, 5)
    gaussian.set_covariance(covariance)
    features = normal(2, 5, 6, 6, seed=2)
    distance = gaussian(features)
    assert distance.shape == (2, 6, 6)
    for image, row, column in ((0, 0, 0), (1, 0, 5), (0, 3, 2), (1, 5, 4), (1, 2, 2)):
        cell = (row // 2) * 3 + column // 2
        expected = mahalanobis(
            features[image, :, row, column], gaussian.mean[:, row, column], np.linalg.inv(covariance[cell].double())
        )
        assert distance[image, row, column].item() == pytest.approx(expected / 5**0.5, rel=5e-3)


def test_a_gaussian_of_fewer_channels_looks_at_the_last_ones():
    gaussian = FeatureGaussian(num_features=3, grid_size=2, num_cells=1)
    gaussian.set_covariance(covariances(1, 3))
    features = normal(2, 8, 2, 2)
    assert torch.equal(gaussian(features), gaussian(features[:, 5:]))
    assert not torch.equal(gaussian(features), gaussian(features[:, :3]))


def test_whitening_is_stored_in_whole_numbers_that_reach_from_end_to_end_of_each_row():
    gaussian = FeatureGaussian(num_features=40, grid_size=2, num_cells=2)
    covariance = covariances(4, 40) * torch.logspace(-2, 2, 4)[:, None, None]
    gaussian.set_covariance(covariance)
    assert gaussian.packed_whitening.dtype == torch.int8
    rows, columns = torch.tril_indices(40, 40)
    codes = torch.zeros(4, 40, 40)
    codes[:, rows, columns] = gaussian.packed_whitening.float()
    assert (codes.abs().amax(dim=2) == LARGEST_CODE).all()
    exact = torch.linalg.inv(torch.linalg.cholesky(covariance.double()))
    error = (codes * gaussian.whitening_scale[..., None] - exact).abs()
    assert (error <= 0.6 * gaussian.whitening_scale[..., None]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_changes_neither_the_whole_numbers_nor_the_statistics(dtype):
    gaussian = FeatureGaussian(num_features=4, grid_size=2, num_cells=1)
    gaussian.mean.copy_(normal(4, 2, 2))
    gaussian.set_covariance(covariances(1, 4))
    before = {name: buffer.clone() for name, buffer in gaussian.named_buffers()}
    gaussian.to(dtype)
    for name, buffer in gaussian.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        torch.testing.assert_close(buffer, before[name], atol=5e-3, rtol=5e-3)


def test_finer_features_are_averaged_to_the_grid_of_the_reference():
    gaussian = FeatureGaussian(num_features=4, grid_size=4, num_cells=2)
    gaussian.set_covariance(covariances(4, 4))
    memory = FeatureMemory(num_features=4, grid_size=4, size=10)
    memory.bank.copy_(normal(10, 4))
    features = normal(3, 4, 8, 8)
    coarse = features.view(3, 4, 4, 2, 4, 2).mean(dim=(3, 5))
    for reference in (gaussian, memory):
        torch.testing.assert_close(reference(features), reference(coarse))


def test_a_new_covariance_replaces_the_old_one_at_once():
    gaussian = FeatureGaussian(num_features=3, grid_size=2, num_cells=1)
    features = normal(1, 3, 2, 2)
    gaussian.set_covariance(torch.eye(3)[None])
    first = gaussian(features)
    gaussian.set_covariance(4 * torch.eye(3)[None])
    torch.testing.assert_close(gaussian(features), first / 2)


def test_cells_that_do_not_divide_the_grid_are_refused():
    with pytest.raises(ValueError, match="num_cells 5 does not divide grid_size 32"):
        FeatureGaussian(num_cells=5)


def test_memory_distance_is_that_of_the_nearest_kept_feature_in_the_whitened_space():
    memory = FeatureMemory(num_features=6, grid_size=4, size=50)
    memory.whitening.copy_(normal(6, 6, seed=1))
    memory.bank.copy_(normal(50, 6, seed=2))
    features = normal(3, 6, 4, 4, seed=3)
    rows = (features.permute(0, 2, 3, 1).reshape(-1, 6) @ memory.whitening).numpy()
    expected = cKDTree(memory.bank.numpy()).query(rows)[0].reshape(3, 4, 4) / 6**0.5
    np.testing.assert_allclose(memory(features).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_large_memory_is_searched_in_pieces_without_a_difference():
    memory = FeatureMemory(num_features=6, grid_size=4, size=2 * KEPT_AT_ONCE + 7)
    memory.bank.copy_(normal(2 * KEPT_AT_ONCE + 7, 6))
    features = normal(3, 6, 4, 4, seed=1)
    expected = torch.cdist(memory.whitened(features), memory.bank).amin(dim=1).view(3, 4, 4) / 6**0.5
    torch.testing.assert_close(memory(features), expected, atol=1e-6, rtol=0)


def test_a_places_distance_does_not_depend_on_the_batch_it_comes_in():
    memory = FeatureMemory(num_features=6, grid_size=4, size=50)
    memory.bank.copy_(normal(50, 6))
    gaussian = FeatureGaussian(num_features=6, grid_size=4, num_cells=2)
    gaussian.set_covariance(covariances(4, 6))
    features = normal(5, 6, 4, 4)
    for reference in (gaussian, memory):
        together = reference(features)
        for index in range(5):
            torch.testing.assert_close(reference(features[index : index + 1])[0], together[index])


# the fit


def test_shrinkage_weighs_the_common_covariance_like_a_fixed_number_of_images():
    covariance = covariances(4, 3).double()
    few, many = shrink(covariance, 1), shrink(covariance, 10**9)
    regular = REGULARIZATION * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(many, covariance + regular)
    weight = 1 / (1 + PRIOR_IMAGES)
    torch.testing.assert_close(few, weight * covariance + (1 - weight) * covariance.mean(dim=0) + regular)


def test_greedy_coreset_takes_the_farthest_each_time():
    # two far clusters and a lone point: three picks hit all three
    rows = torch.cat([normal(40, 8) * 0.01, normal(40, 8) * 0.01 + 5, torch.full((1, 8), -20.0)])
    chosen = greedy_coreset(rows, 3, torch.Generator().manual_seed(0)).tolist()
    assert {min(index // 40, 2) for index in chosen} == {0, 1, 2}
    everything = greedy_coreset(rows, len(rows), torch.Generator().manual_seed(0))
    assert sorted(everything.tolist()) == list(range(len(rows)))


def test_memory_of_candidates_is_whitened_and_keeps_a_candidate_at_distance_zero():
    scales = torch.tensor([10.0, 1.0, 0.5])
    candidates = normal(400, 3) * scales
    memory = fill_memory(candidates, 4, torch.Generator().manual_seed(0))
    white = candidates @ memory.whitening
    variances = torch.cov(white.T).diagonal()
    assert ((variances > 0.7) & (variances <= 1.01)).all()
    assert len(memory.bank) == 400
    features = candidates[:16].T.reshape(1, 3, 4, 4)
    assert memory(features).max() < 1e-2


def test_fit_equals_moments_computed_image_by_image(tiny_pipeline, tile_files):
    extractor = tiny_pipeline.feature_extractor
    images = GoodImages(tile_files, 64)
    features = torch.stack([extractor(images[index][None])[0] for index in range(len(images))])
    gaussian, memory, coarse_gaussian, _ = fit_feature_reference(extractor, images, batch_size=5)
    mean = features.double().mean(dim=0)
    torch.testing.assert_close(gaussian.mean, mean.float(), atol=2e-3, rtol=2e-3)
    deviation = by_cell((features.double() - mean).float(), 16).double()
    covariance = shrink(deviation @ deviation.transpose(1, 2) / len(features), len(features))
    expected = FeatureGaussian(192, 16, 16)
    expected.mean.copy_(mean)
    expected.set_covariance(covariance)
    torch.testing.assert_close(gaussian(features), expected(features), atol=5e-3, rtol=5e-3)
    # strides 8 and 16 on a grid half as fine, each place with its own covariance
    coarse = torch.nn.functional.avg_pool2d(features[:, 16 + 24 :], 2).double()
    deviation = by_cell((coarse - coarse.mean(dim=0)).float(), 8).double()
    expected = FeatureGaussian(40 + 112, 8, 8)
    expected.mean.copy_(coarse.mean(dim=0))
    expected.set_covariance(shrink(deviation @ deviation.transpose(1, 2) / len(features), len(features)))
    torch.testing.assert_close(coarse_gaussian(features), expected(features), atol=5e-3, rtol=5e-3)
    assert memory.bank.shape == (3000, 192)
    for reference in (gaussian, memory, coarse_gaussian):
        for name, buffer in reference.named_buffers():
            assert torch.equal(buffer.float(), buffer.half().float()), name


def test_fit_is_reproducible(tiny_pipeline, tile_files):
    images = GoodImages(tile_files, 64)
    first = fit_feature_reference(tiny_pipeline.feature_extractor, images, seed=1)
    again = fit_feature_reference(tiny_pipeline.feature_extractor, images, seed=1)
    other = fit_feature_reference(tiny_pipeline.feature_extractor, images, seed=2)
    for one, two in zip(first, again, strict=True):
        for name, buffer in one.named_buffers():
            assert torch.equal(buffer, dict(two.named_buffers())[name]), name
    assert not torch.equal(first[1].bank, other[1].bank)


def test_a_synthetic_blot_is_far_from_good_features_where_it_lies(tiny_pipeline, tile_files):
    extractor = tiny_pipeline.feature_extractor
    training, new = tile_files[:-4], tile_files[-4:]
    references = fit_feature_reference(extractor, GoodImages(training, 64))
    images = GoodImages(new, 64)
    samples = torch.stack([images[index] for index in range(4)])
    blotted = samples.clone()
    blotted[:, :, 24:36, 36:48] = 1 - blotted[:, :, 24:36, 36:48]
    for reference in references[:3]:
        clean, synthetic = (resize_map(reference(extractor(each)), (16, 16)) for each in (samples, blotted))
        gain = (synthetic - clean).mean(dim=0)
        assert gain[6:9, 9:12].mean() > 1.05 * gain[:4, :6].mean() > 0


def test_references_survive_a_round_trip_and_stay_in_float32(tiny_pipeline, tiny_checkpoint):
    loaded = type(tiny_pipeline).from_pretrained(tiny_checkpoint, torch_dtype=torch.bfloat16)
    features = tiny_pipeline.feature_extractor(preprocess(np.zeros((64, 64), np.uint8), 64)[0])
    for name in REFERENCES:
        reference, original = getattr(loaded, name), getattr(tiny_pipeline, name)
        assert {buffer.dtype for buffer in reference.buffers() if buffer.is_floating_point()} == {torch.float32}
        assert torch.equal(reference(features), original(features))


@pytest.mark.parametrize(
    ("name", "num_features", "fits"),
    [("coarse_gaussian", 152, True), ("coarse_gaussian", 193, False), ("gaussian", 152, False)],
)
def test_only_the_coarse_gaussian_may_look_at_some_of_the_features(tiny_pipeline, name, num_features, fits):
    pipe = type(tiny_pipeline).from_pipe(tiny_pipeline, **{name: FeatureGaussian(num_features, 8, 8)})
    if fits:
        check_fit(pipe)
    else:
        with pytest.raises(ValueError, match=f"the {name} is one of {num_features} features, .* has 192"):
            check_fit(pipe)
