"""AnomalyScoringPipeline through its public call: reproducible scores, maps at the image's size, clear refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sentences import refused

from pipelines.anomaly_maps import render, resize_map
from pipelines.denoising_network import has_bfloat16
from pipelines.gaussian_diffusion import (
    add_noise,
    discretized_gaussian_nll,
    gaussian_kl,
    model_gaussian,
    true_posterior,
)
from pipelines.image_preprocessing import contrast_scale, normalize_contrast, preprocess
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.fitting.calibration_fit import fit_calibration

SAME = 0.01
"""Largest difference, in standard deviations of good scores, that counts as the same score."""


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint):
    """This file's own copy of the calibrated pipeline."""
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def tiles(tile_files):
    """Seven real tiles of different sizes."""
    return [Image.open(path) for path in tile_files[:7]]


@pytest.fixture(scope="module")
def output(pipe, tiles):
    return pipe(tiles)


@pytest.fixture(scope="module")
def strange_images():
    """An image of each kind that scores far from good tiles, with its (height, width)."""
    rng = np.random.default_rng(0)
    return [
        (Image.fromarray(rng.integers(0, 256, (50, 31, 3)).astype(np.uint8)), (50, 31)),
        (Image.fromarray(rng.integers(0, 65536, (20, 90)).astype(np.uint16)), (20, 90)),
        (Image.new("CMYK", (40, 41), (0, 200, 200, 0)), (41, 40)),
        (rng.random((64, 64)), (64, 64)),
        (torch.from_numpy(rng.random((3, 7, 200))), (7, 200)),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 128)), (1, 1)),
        (Image.new("1", (130, 140)), (140, 130)),
    ]


def deviation(pipe):
    """Deviation of the calibrated good scores at the default settings."""
    quantiles = [pipe.calibration.image_threshold(k / 25, pipe.config.timesteps) for k in range(1, 25)]
    return float(np.std(quantiles))


def test_the_same_image_scores_the_same_alone_in_any_batch_and_at_any_place(pipe, tiles, output):
    tolerance = SAME * deviation(pipe)
    assert np.ptp(output.anomaly_score) > 10 * tolerance
    for index, tile in enumerate(tiles):
        np.testing.assert_allclose(pipe(tile).anomaly_score[0], output.anomaly_score[index], atol=tolerance, rtol=0)
    for batch_size in (1, 2, 3, 100):
        again = pipe(tiles, batch_size=batch_size)
        np.testing.assert_allclose(again.anomaly_score, output.anomaly_score, atol=tolerance, rtol=0)
        backwards = pipe(tiles[::-1], batch_size=batch_size)
        np.testing.assert_allclose(backwards.anomaly_score[::-1], output.anomaly_score, atol=tolerance, rtol=0)
        for anomaly_map, expected in zip(backwards.anomaly_map[::-1], output.anomaly_map, strict=True):
            np.testing.assert_allclose(anomaly_map, expected, atol=tolerance, rtol=0)


def test_repeated_runs_are_bit_identical_whatever_the_global_random_state(pipe, tiles, output):
    torch.manual_seed(123)
    np.random.seed(123)
    again = pipe(tiles)
    assert again.anomaly_score.tobytes() == output.anomaly_score.tobytes()
    for name in ("anomaly_map", "kl_map", "feature_map", "pred_mask"):
        for first, second in zip(getattr(output, name), getattr(again, name), strict=True):
            assert first.tobytes() == second.tobytes()


def test_other_noise_moves_scores_a_little_and_reproducibly(pipe, tiles, output):
    def other(seed):
        return pipe(tiles, generator=torch.Generator().manual_seed(seed)).anomaly_score

    assert np.array_equal(other(1), other(1))
    assert not np.array_equal(other(1), other(2))
    assert not np.array_equal(other(1), output.anomaly_score)
    assert np.abs(other(1) - output.anomaly_score).mean() < 2 * deviation(pipe)


def test_maps_and_masks_come_back_at_each_images_own_size(pipe, strange_images, tiles):
    output = pipe([image for image, _ in strange_images] + tiles)
    sizes = [size for _, size in strange_images] + [(tile.height, tile.width) for tile in tiles]
    assert len(set(sizes)) > 7
    for name, dtype in (("anomaly_map", np.float32), ("kl_map", np.float32), ("feature_map", np.float32)):
        maps = getattr(output, name)
        assert [each.shape for each in maps] == sizes
        assert {each.dtype for each in maps} == {np.dtype(dtype)}
        assert all(np.isfinite(each).all() for each in maps)
    assert [mask.shape for mask in output.pred_mask] == sizes
    assert {mask.dtype for mask in output.pred_mask} == {np.dtype(bool)}
    for values, dtype in (
        (output.anomaly_score, np.float32),
        (output.p_value, np.float64),
        (output.is_anomalous, np.bool_),
    ):
        assert values.shape == (len(sizes),)
        assert values.dtype == dtype


def test_the_anomaly_map_blends_both_components_as_equation_11_does(pipe, tiles, output):
    for alpha, result in ((0.5, output), (0.3, pipe(tiles, alpha=0.3)), (1, pipe(tiles, alpha=1))):
        for anomaly_map, kl_map, feature_map in zip(result.anomaly_map, result.kl_map, result.feature_map, strict=True):
            np.testing.assert_allclose(anomaly_map, alpha * kl_map + (1 - alpha) * feature_map, atol=1e-5)
            assert np.abs(kl_map - feature_map).max() > 0.1


def test_alpha_0_and_1_leave_one_part_of_the_map_alone_and_the_score_as_it_is(pipe, tiles, output):
    features_only, pixels_only = pipe(tiles, alpha=0), pipe(tiles, alpha=1.0)
    for first, second in zip(features_only.anomaly_map, features_only.feature_map, strict=True):
        np.testing.assert_array_equal(first, second)
    for first, second in zip(pixels_only.anomaly_map, pixels_only.kl_map, strict=True):
        np.testing.assert_array_equal(first, second)
    for other in (features_only, pixels_only):
        np.testing.assert_array_equal(other.anomaly_score, output.anomaly_score)
        np.testing.assert_array_equal(other.p_value, output.p_value)


def test_the_score_combines_each_components_worst_hundredth_in_deviations_of_good_images(pipe, tile_files):
    samples, _ = preprocess(Image.open(tile_files[0]), 64)
    timesteps, calibration = [5, 50, 100], pipe.calibration
    components = calibration.standardize(
        pipe.measure(samples, timesteps, calibration.noise_fields(timesteps)), timesteps
    )
    worst = [np.sort(values.ravel())[-round(0.01 * values.size) :].mean() for values in components[0].numpy()]
    standardized = (np.array(worst) - calibration.part_score_mean[-1].numpy()) / calibration.part_score_std[-1].numpy()
    kept = {name: calibration.config[name] for name in ("image_parts", "image_rule")}
    for rule, combined in (("max", standardized.max()), ("mean", standardized.mean())):
        calibration.register_to_config(image_parts=None, image_rule=rule)
        score = pipe(Image.open(tile_files[0])).anomaly_score[0]
        assert score == pytest.approx(combined, abs=1e-4)
    calibration.register_to_config(**kept)


def test_components_are_standardised_measurements_averaged_over_the_timesteps_asked_for(pipe, tile_files):
    with Image.open(tile_files[0]) as tile:
        square = tile.resize((64, 64))
    samples, _ = preprocess(square, 64)
    single = {}
    for timestep in (5, 50, 100):
        measured = pipe.measure(samples, [timestep], pipe.calibration.noise_fields([timestep]))
        components = pipe.calibration.two_components(pipe.calibration.standardize(measured, [timestep]))
        single[timestep] = render(components, 64, pipe.config.smoothing_sigma)[0].numpy()
    for timesteps in ([5], [50, 5], [5, 50, 100], (100,), np.array([100, 50])):
        result = pipe(square, timesteps=timesteps)
        for part, name in enumerate(("kl_map", "feature_map")):
            expected = np.mean([single[int(timestep)][part] for timestep in timesteps], axis=0)
            np.testing.assert_allclose(getattr(result, name)[0], expected, atol=1e-4)
    spread = np.std([single[timestep][0] for timestep in single], axis=0).max()
    assert spread > 0.1


def test_at_timestep_0_the_pixel_part_is_equation_6_and_elsewhere_equation_9(pipe, tiles):
    samples, _ = preprocess(tiles[0], 64)
    noise, timesteps = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 50])
    measured = pipe.measure(samples, timesteps.tolist(), noise, "no").kl[0]
    sample = normalize_contrast(samples, pipe.config.data_mean, pipe.config.data_std).repeat(2, 1, 1, 1)
    alphas_cumprod = pipe.scheduler.alphas_cumprod
    noisy_sample = add_noise(sample, noise, alphas_cumprod, timesteps)
    with torch.no_grad():
        predicted = pipe.predict(noisy_sample, timesteps, "no")[:2]
    mean, log_variance = model_gaussian(noisy_sample, *predicted, alphas_cumprod, timesteps)
    bin_width = 2 / 255 * contrast_scale(pipe.config.data_std)
    likelihood = discretized_gaussian_nll(sample[:1], mean[:1], log_variance[:1], bin_width)
    divergence = gaussian_kl(*true_posterior(sample, noisy_sample, alphas_cumprod, timesteps), mean, log_variance)[1:]
    expected = torch.cat([likelihood, divergence]).mean(dim=1)
    torch.testing.assert_close(measured, F.avg_pool2d(expected[None], 4)[0], atol=1e-5, rtol=1e-4)


def test_without_references_the_feature_part_is_equation_10_alone(pipe, tile_files, tiles):
    plain = AnomalyScoringPipeline(pipe.unet, pipe.scheduler, pipe.feature_extractor, data_mean=-0.1, data_std=0.3)
    plain.set_progress_bar_config(disable=True)
    plain.register_modules(calibration=fit_calibration(plain, tile_files, [5, 50, 100]))
    assert plain.calibration.part_scores.shape[-1] == 2
    samples, _ = preprocess(tiles[0], 64)
    measured = plain.measure(samples, [50], plain.calibration.noise_fields([50]))
    assert measured.reference.shape == (1, 0, 16, 16)
    components = plain.calibration.standardize(measured, [50])
    expected = render(components[:, 1:], 64, plain.config.smoothing_sigma)[0, 0]
    result = plain(tiles[0], timesteps=[50], output_type="pt")
    torch.testing.assert_close(result.feature_map[0], resize_map(expected, result.feature_map[0].shape))


def test_order_of_timesteps_does_not_matter(pipe, tiles):
    forwards, backwards = pipe(tiles, timesteps=[5, 100]), pipe(tiles, timesteps=[100, 5])
    np.testing.assert_allclose(forwards.anomaly_score, backwards.anomaly_score, atol=SAME * deviation(pipe))
    assert forwards.image_threshold == backwards.image_threshold


@pytest.fixture
def familiar(pipe):
    """The pipeline without a limit for unfamiliar images: the strange ones have verdicts, too."""
    limit = pipe.calibration.config.unfamiliar_distance
    pipe.calibration.register_to_config(unfamiliar_distance=None)
    yield pipe
    pipe.calibration.register_to_config(unfamiliar_distance=limit)


def test_unfamiliar_images_have_empty_masks(pipe, strange_images):
    result = pipe([image for image, _ in strange_images], false_alarm_rate=1.0)
    assert result.is_unfamiliar.any()
    for unfamiliar, mask in zip(result.is_unfamiliar, result.pred_mask, strict=True):
        assert not (unfamiliar and mask.any())


def test_accepted_images_have_empty_masks_and_rejected_ones_mark_what_exceeds_the_threshold(
    familiar, tiles, strange_images
):
    pipe = familiar
    images = tiles + [image for image, _ in strange_images]
    for rate in (None, 0.3, 1.0):
        result = pipe(images, false_alarm_rate=rate)
        for anomalous, mask, anomaly_map in zip(result.is_anomalous, result.pred_mask, result.anomaly_map, strict=True):
            np.testing.assert_array_equal(mask, (anomaly_map > result.pixel_threshold) & anomalous)
        assert result.is_anomalous.tolist() == (result.p_value <= result.false_alarm_rate + 1e-12).tolist()
        assert result.is_anomalous.tolist() == (result.anomaly_score > result.image_threshold).tolist()
        if rate == 1.0:
            assert result.is_anomalous.all()
        else:
            assert 0 < result.is_anomalous.sum() < len(images)
            assert not any(
                mask.any() for mask, bad in zip(result.pred_mask, result.is_anomalous, strict=True) if not bad
            )
            assert any(mask.any() for mask in result.pred_mask)


def test_an_accepted_images_mask_is_empty_even_where_its_map_exceeds_the_pixel_threshold(pipe, output):
    peak = torch.zeros(3, 4)
    peak[1, 2] = output.pixel_threshold + 1
    scores = torch.tensor([output.image_threshold - 1, output.image_threshold + 1])
    verdicts = pipe.decide([peak, peak], scores)
    assert verdicts["is_anomalous"].tolist() == [False, True]
    assert [mask.nonzero().tolist() for mask in verdicts["pred_mask"]] == [[], [[1, 2]]]


def test_deciding_again_at_another_rate_equals_a_new_call_at_that_rate(familiar, tiles, strange_images):
    pipe = familiar
    images = tiles + [image for image, _ in strange_images]
    first = pipe(images, alpha=0.3, timesteps=[5, 50], output_type="pt")
    for rate in (None, 0.04, 0.3, 1.0):
        again = pipe(images, alpha=0.3, timesteps=[5, 50], false_alarm_rate=rate, output_type="pt")
        verdicts = pipe.decide(first.anomaly_map, torch.from_numpy(first.anomaly_score), 0.3, [5, 50], rate)
        for name in ("false_alarm_rate", "image_threshold", "pixel_threshold"):
            assert verdicts[name] == getattr(again, name)
        assert again.image_threshold == pipe.calibration.image_threshold(again.false_alarm_rate, [5, 50])
        assert again.pixel_threshold == pipe.calibration.pixel_threshold(again.false_alarm_rate, 0.3, [5, 50])
        for name in ("p_value", "is_anomalous"):
            np.testing.assert_array_equal(verdicts[name], getattr(again, name))
        for mask, expected in zip(verdicts["pred_mask"], again.pred_mask, strict=True):
            assert torch.equal(mask, expected)


def test_the_default_rate_is_the_smallest_that_the_calibration_can_promise(pipe, output):
    assert output.false_alarm_rate == 1 / 25
    assert pipe(np.zeros((8, 8)), false_alarm_rate=0.001).false_alarm_rate == 1 / 25
    assert pipe(np.zeros((8, 8)), false_alarm_rate=0.25).false_alarm_rate == 0.25


def test_output_types_hold_the_same_values(familiar, tiles, strange_images, output):
    pipe = familiar
    given = [*tiles[:2], strange_images[0][0]]
    arrays, tensors, images = (pipe(given, output_type=kind) for kind in ("np", "pt", "pil"))
    assert arrays.pred_mask[2].any()
    for name in ("anomaly_map", "kl_map", "feature_map", "pred_mask"):
        for array, tensor, image in zip(*(getattr(kind, name) for kind in (arrays, tensors, images)), strict=True):
            assert isinstance(array, np.ndarray)
            assert isinstance(tensor, torch.Tensor)
            assert isinstance(image, Image.Image)
            assert image.size == array.shape[::-1]
            np.testing.assert_array_equal(array, tensor.numpy())
            if name == "pred_mask":
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), array * np.uint8(255))
            else:
                assert image.mode == "F"
                np.testing.assert_array_equal(np.asarray(image), array)
    for name in ("anomaly_score", "p_value", "is_anomalous"):
        assert {type(getattr(kind, name)) for kind in (arrays, tensors, images)} == {np.ndarray}


def test_a_plain_tuple_holds_the_fields_in_their_order(pipe, tiles, output):
    answer = pipe(tiles, return_dict=False)
    assert isinstance(answer, tuple)
    fields = list(output.keys())
    assert fields[:5] == ["anomaly_map", "anomaly_score", "p_value", "is_anomalous", "pred_mask"]
    assert len(answer) == len(fields) == 12
    for name, value in zip(fields, answer, strict=True):
        if isinstance(value, list):
            assert all(np.array_equal(a, b) for a, b in zip(value, getattr(output, name), strict=True))
        else:
            assert np.array_equal(value, getattr(output, name))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_one_network_call_takes_all_timesteps_of_a_batch_of_images(pipe, tiles, batch_size):
    unet_batches, extractor_batches = [], []
    handles = [
        pipe.unet.register_forward_hook(lambda _, arguments, __: unet_batches.append(len(arguments[0]))),
        pipe.feature_extractor.register_forward_hook(
            lambda _, arguments, __: extractor_batches.append(len(arguments[0]))
        ),
    ]
    try:
        pipe(tiles, batch_size=batch_size)
        pipe(tiles[0], timesteps=[50], batch_size=batch_size)
    finally:
        for handle in handles:
            handle.remove()
    full, rest = divmod(len(tiles), batch_size)
    expected = [batch_size] * full + [rest] * (rest > 0)
    assert extractor_batches == [*expected, 1]
    assert unet_batches == [3 * count for count in expected] + [1]


def test_no_gradients_are_kept(pipe, tiles):
    result = pipe(tiles[0], output_type="pt")
    assert not result.anomaly_map[0].requires_grad


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timesteps": [5, 7]}, ("[5, 7]", "[5, 50, 100]")),
        ({"timesteps": []}, ("[]",)),
        ({"timesteps": [5, 5]}, ("[5, 5]",)),
        ({"alpha": -0.1}, ("alpha", "-0.1")),
        ({"alpha": 1.5}, ("alpha", "1.5")),
        ({"alpha": float("nan")}, ("alpha", "nan")),
        ({"false_alarm_rate": 0}, ("false_alarm_rate", "0")),
        ({"false_alarm_rate": 1.5}, ("false_alarm_rate", "1.5")),
        ({"false_alarm_rate": -0.01}, ("false_alarm_rate", "-0.01")),
        ({"false_alarm_rate": 5}, ("false_alarm_rate is 5;", "0.05 for 5 %")),
        ({"false_alarm_rate": "5 %"}, ("false_alarm_rate", "5 %")),
        ({"batch_size": 0}, ("batch_size", "0")),
        ({"output_type": "numpy"}, ("output_type", "numpy")),
    ],
)
def test_arguments_out_of_range_are_refused_with_a_sentence_before_any_network_runs(pipe, tiles, options, words):
    calls = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        with refused(ValueError, *words):
            pipe(tiles[0], **options)
    finally:
        handle.remove()
    assert not calls


def test_what_is_no_image_is_refused_with_a_sentence(pipe, tiles):
    with refused(ValueError, "empty"):
        pipe([])
    with refused(TypeError, "image 1", "bytes", "PIL.Image.open(...)"):
        pipe([tiles[0], b"tile.png"])
    with refused(ValueError, "image 1", "tile.png", "No such file"):
        pipe([tiles[0], "tile.png"])
    with refused(ValueError, "image 0", "int64"):
        pipe(np.zeros((8, 8), np.int64))


def test_without_a_calibration_it_measures_but_gives_no_verdict(pipe, tiles):
    uncalibrated = AnomalyScoringPipeline(pipe.unet, pipe.scheduler, pipe.feature_extractor)
    with refused(ValueError, "calibration"):
        uncalibrated(tiles[0])
    samples, _ = preprocess(tiles[:2], 64)
    measured = uncalibrated.measure(samples, [5, 50], torch.zeros(2, 3, 64, 64))
    kl, feature_error, reference, distance = measured
    assert distance.isnan().all()
    assert kl.shape == feature_error.shape == (2, 2, 16, 16)
    assert reference.shape == (2, 0, 16, 16)
    assert kl.min() >= -1e-5
    assert feature_error.min() >= 0


def test_a_scheduler_without_learned_variance_and_an_unknown_precision_are_refused(pipe):
    fixed = type(pipe.scheduler).from_config(pipe.scheduler.config, variance_type="fixed_small")
    with refused(ValueError, "fixed_small", "learned_range"):
        AnomalyScoringPipeline(pipe.unet, fixed, pipe.feature_extractor)
    with refused(ValueError, "fp8"):
        AnomalyScoringPipeline(pipe.unet, pipe.scheduler, pipe.feature_extractor, mixed_precision="fp8")


def test_bfloat16_moves_scores_no_further_than_the_calibration_measured(tiny_checkpoint, pipe, tile_files):
    tiles = [Image.open(path) for path in tile_files]
    exact = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, mixed_precision="no")
    rough = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, mixed_precision="bf16")
    exact.set_progress_bar_config(disable=True)
    rough.set_progress_bar_config(disable=True)
    moved = np.abs(exact(tiles).anomaly_score - rough(tiles).anomaly_score).max()
    assert 0 < moved < 0.25 * deviation(pipe)


def test_bfloat16_runs_by_itself_only_where_calibration_found_the_scores_to_agree(tiny_checkpoint, tiles):
    def scores(precision, measured):
        pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, mixed_precision=precision)
        pipe.calibration.register_to_config(bfloat16_deviation=measured)
        return pipe(tiles[0]).anomaly_score[0]

    exact, rough = scores("no", 0.0), scores("bf16", 1.0)
    assert exact != rough
    assert scores("auto", 1.0) == scores("auto", None) == exact
    if has_bfloat16(torch.device("cpu")):
        assert scores("auto", 0.001) == rough
    else:
        assert scores("auto", 0.001) == exact


def test_convolutions_keep_all_bits_while_an_image_is_measured_and_not_beyond(pipe, tiles):
    allowed = []
    hooks = [
        network.register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
        for network in (pipe.unet, pipe.feature_extractor)
    ]
    pipe(tiles[:1])
    for hook in hooks:
        hook.remove()
    assert allowed
    assert not any(allowed)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 8])
def test_scores_on_the_gpu_are_those_of_the_cpu(tiny_checkpoint, pipe, tiles, output, batch_size):
    on_gpu = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, mixed_precision="no").to("cuda")
    scores = on_gpu(tiles, batch_size=batch_size).anomaly_score
    np.testing.assert_allclose(scores, output.anomaly_score, atol=SAME * deviation(pipe), rtol=0)
