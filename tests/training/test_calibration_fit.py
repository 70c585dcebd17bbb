"""A calibration fitted to held-out good images, and the command that fits it anew."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sentences import assert_sentence

from pipelines.measurement import Measurement
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from training.calibration import main
from training.data.good_images import GoodImages
from training.data.layouts import find_good_images
from training.data.splits import hold_out
from training.fitting.calibration_fit import FITTED_SHARE, MIN_DISJOINT, draw_noise_fields, fit_calibration
from training.fitting.normalisation import fit_normalisation
from training.fitting.promise import describe_promise

TIMESTEPS = [5, 50, 100]


@pytest.fixture(scope="module")
def many_files(tile_files, tmp_path_factory):
    """As many good images as a disjoint fit needs, at the model's own size: tiles with a little noise each."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for index in range(MIN_DISJOINT):
        with Image.open(tile_files[index % len(tile_files)]) as tile:
            pixels = np.asarray(tile.convert("L").resize((64, 64)), np.float32)
        pixels = (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"tile_{index:02d}.png")
    return find_good_images(folder)


@pytest.fixture(scope="module")
def disjoint_pipeline(tiny_checkpoint, many_files):
    """The tiny pipeline calibrated on two disjoint sets of images."""
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, calibration=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(calibration=fit_calibration(pipe, many_files, TIMESTEPS))
    return pipe


def scores_of(pipe, files, **options):
    return torch.from_numpy(pipe([Image.open(path) for path in files], **options).anomaly_score)


def ranked_scores(calibration):
    """Scores of the ranked good images at every timestep, highest first."""
    count = calibration.config.num_ranked
    rates = [k / (count + 1) for k in range(1, count + 1)]
    return torch.tensor([calibration.image_threshold(rate, TIMESTEPS) for rate in rates])


def measured(pipe, files):
    """Measurement of images under the calibration's own noise."""
    images = GoodImages(files, pipe.resolution)
    samples = torch.stack([images[index] for index in range(len(files))])
    noise = pipe.calibration.noise_fields(TIMESTEPS)
    components = [pipe.measure(batch, TIMESTEPS, noise, "no") for batch in samples.split(8)]
    return Measurement(*(torch.cat(part) for part in zip(*components, strict=True)))


def test_standardised_maps_are_in_deviations_of_the_cell_and_timestep_they_belong_to():
    calibration = ScoreCalibration(timesteps=TIMESTEPS, resolution=8, grid_size=2, map_weights=[0.5, 0.25, 0.25])
    calibration.kl_mean.copy_(torch.arange(12.0).view(3, 2, 2))
    calibration.kl_std.fill_(2)
    calibration.feature_error_std.copy_(torch.tensor([1.0, 4.0, 5.0]).view(3, 1, 1).expand(3, 2, 2))
    calibration.reference_mean.copy_(torch.tensor([1.0, 2.0]))
    calibration.reference_std.copy_(torch.tensor([2.0, 4.0]))
    measured = Measurement(
        torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 20.0), torch.full((1, 2, 2, 2), 6.0), torch.zeros(1)
    )
    kl, feature_error, *references = calibration.standardize(measured, [100, 50])[0]
    # means of timestep 100 are 8, 9, 10, 11, those of timestep 50 4, 5, 6, 7
    assert kl.flatten().tolist() == [-(8 + 4) / 4, -(9 + 5) / 4, -(10 + 6) / 4, -(11 + 7) / 4]
    assert (feature_error == (20 / 5 + 20 / 4) / 2).all()
    assert (references[0] == 2.5).all()
    assert (references[1] == 1.0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_calibration_stays_in_float32_bit_by_bit_whatever_the_pipeline_is_cast_to(tiny_checkpoint, dtype):
    original = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint).calibration.state_dict()
    cast = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint).to(dtype)
    loaded = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, torch_dtype=dtype)
    for pipe in (cast, loaded, cast.to(torch.float64)):
        assert len(pipe.calibration.state_dict()) == 13
        for name, tensor in pipe.calibration.state_dict().items():
            assert tensor.dtype == torch.float32, name
            assert torch.equal(tensor, original[name]), name
    assert {parameter.dtype for parameter in loaded.unet.parameters()} == {dtype}
    assert {parameter.dtype for parameter in cast.unet.parameters()} == {torch.float64}


@pytest.mark.gpu
def test_calibration_follows_to_the_gpu_in_float32(tiny_checkpoint):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint).to("cuda", torch.bfloat16)
    assert {buffer.device.type for buffer in pipe.calibration.buffers()} == {"cuda"}
    assert {buffer.dtype for buffer in pipe.calibration.buffers()} == {torch.float32}


def test_few_images_are_cross_fitted_and_the_description_says_so(tiny_pipeline):
    config = tiny_pipeline.calibration.config
    assert config.cross_fitted
    assert config.num_ranked == config.num_fitted == 24
    assert_sentence(
        describe_promise(tiny_pipeline.calibration), "24", "cross-fitting", "4.0 %", "estimates", str(MIN_DISJOINT)
    )


def test_many_images_are_split_in_two_and_the_description_guarantees_the_rate(disjoint_pipeline):
    config = disjoint_pipeline.calibration.config
    assert not config.cross_fitted
    assert config.num_fitted + config.num_ranked == MIN_DISJOINT
    assert_sentence(describe_promise(disjoint_pipeline.calibration), "16 + 24", "4.0 %", "guaranteed")


def test_ranked_images_and_those_that_fit_the_normalisation_are_disjoint(disjoint_pipeline, many_files):
    calibration = disjoint_pipeline.calibration
    scores = scores_of(disjoint_pipeline, many_files)
    ranked = ranked_scores(calibration)
    distances = (scores[:, None] - ranked[None]).abs()
    # every ranked score is that of one image; the others fitted the normalisation
    owners = distances.argmin(dim=0).tolist()
    assert distances.min(dim=0).values.max() < 1e-3
    assert len(set(owners)) == len(ranked) == 24
    fitted = [path for index, path in enumerate(many_files) if index not in owners]
    maps = measured(disjoint_pipeline, fitted)
    for name in ("kl", "feature_error"):
        means = getattr(calibration, f"{name}_mean").mean(dim=(1, 2))
        torch.testing.assert_close(means, getattr(maps, name).mean(dim=(0, 2, 3)), rtol=0.02, atol=0)
    torch.testing.assert_close(calibration.reference_mean, maps.reference.mean(dim=(0, 2, 3)))
    assert_standard(calibration, maps)


def test_weights_are_chosen_without_a_look_at_the_ranked_images(disjoint_pipeline, many_files, tmp_path):
    ranked, fitted = hold_out(many_files, FITTED_SHARE, "ranks 0")
    files = []
    for path in many_files:
        files.append(tmp_path / path.parent.name / path.name)  # the split goes by these names
        files[-1].parent.mkdir(exist_ok=True)
        image = Image.open(path)
        (ImageOps.invert(image) if path in ranked else image).save(files[-1])
    other = fit_calibration(disjoint_pipeline, files, TIMESTEPS)
    calibration = disjoint_pipeline.calibration
    assert len(fitted) == other.config.num_fitted
    for name in ("alpha", "map_weights", "image_parts", "image_rule", "planted_pro", "planted_image_auroc"):
        assert other.config[name] == calibration.config[name], name
    assert (other.part_scores - calibration.part_scores).abs().mean() > 1


def assert_standard(calibration, maps):
    """The fitted images' maps have mean 0 and deviation 1 in every part and timestep, and so have their scores."""
    kept = calibration.config.image_parts
    for index, timestep in enumerate(TIMESTEPS):
        single = maps._replace(kl=maps.kl[:, [index]], feature_error=maps.feature_error[:, [index]])
        components = calibration.standardize(single, [timestep])
        assert components.mean(dim=(0, 2, 3)).abs().max() < 0.1
        assert ((components.std(dim=(0, 2, 3)) > 0.7) & (components.std(dim=(0, 2, 3)) < 1.3)).all()
        for part in range(components.shape[1]):
            calibration.register_to_config(image_parts=[each == part for each in range(components.shape[1])])
            scores = calibration.image_score(components, [timestep])
            assert scores.mean().item() == pytest.approx(0, abs=0.1)
            assert scores.std().item() == pytest.approx(1, abs=0.1)
    calibration.register_to_config(image_parts=kept)


def test_cross_fitted_normalisation_gives_the_fitted_images_maps_mean_0_and_deviation_1(tiny_pipeline, tile_files):
    assert_standard(tiny_pipeline.calibration, measured(tiny_pipeline, tile_files))


def test_normalisation_levels_places_as_far_as_the_images_can_tell_them_apart():
    def fitted(count):
        slope = torch.linspace(-3, 3, 8)[None, None, :, None]  # the lower half is always higher, and noisier
        maps = 5 + slope + (1 + slope.abs()) * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        calibration = ScoreCalibration(timesteps=[5], resolution=8, grid_size=8, num_ranked=count)
        measured = Measurement(maps, maps, maps[:, :0], maps[:, 0, 0, 0])
        fit_normalisation(calibration, measured)
        return maps[:, 0], calibration.standardize(measured, [5])[:, 0]

    def unevenness(maps):
        return (maps.mean(dim=0).mean(dim=1).std() / maps.std()).item()

    raw, many = fitted(5000)
    assert unevenness(raw) > 0.5
    assert unevenness(many) < 0.15
    assert many.std(dim=0).mean(dim=1).std() < 0.2 * raw.std(dim=0).mean(dim=1).std()
    few_raw, few = fitted(5)  # five images say little about a place: it stays close to what all places have
    assert unevenness(few) > 0.8 * unevenness(few_raw)


def test_cross_fitting_ranks_no_image_under_a_normalisation_that_has_seen_it(tiny_pipeline, tile_files):
    # an image's own normalisation flatters it: out of fold, good scores are higher on average
    in_sample = scores_of(tiny_pipeline, tile_files)
    ranked = ranked_scores(tiny_pipeline.calibration)
    assert ranked.mean() > in_sample.mean()
    assert (ranked - in_sample.sort(descending=True).values).abs().max() < 3 * in_sample.std()


@pytest.mark.parametrize("alpha", [0.0, 0.45, 0.5, 1.0])
@pytest.mark.parametrize("timesteps", [[5], [100, 5], [5, 50, 100]])
def test_thresholds_of_a_fit_are_the_pipelines_own_scores_of_the_ranked_images(
    disjoint_pipeline, many_files, alpha, timesteps
):
    output = disjoint_pipeline([Image.open(path) for path in many_files], timesteps=timesteps, alpha=alpha)
    calibration = disjoint_pipeline.calibration
    for values, threshold in (
        (output.anomaly_score, calibration.image_threshold),
        (
            np.array([anomaly_map.max() for anomaly_map in output.anomaly_map]),
            lambda rate, timesteps: calibration.pixel_threshold(rate, alpha, timesteps),
        ),
    ):
        thresholds = np.array([threshold(k / 25, timesteps) for k in range(1, 25)])
        assert (np.diff(thresholds) <= 0).all()
        assert np.abs(values[:, None] - thresholds[None]).min(axis=0).max() < 1e-3


def test_a_fit_is_reproducible_and_its_noise_follows_seed_and_timestep_alone(disjoint_pipeline, many_files):
    again = fit_calibration(disjoint_pipeline, many_files, [100, 5, 50])
    for name, tensor in disjoint_pipeline.calibration.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    noise = draw_noise_fields(0, TIMESTEPS, 64)
    assert torch.equal(disjoint_pipeline.calibration.noise, noise)
    assert torch.equal(draw_noise_fields(0, [50], 64)[0], noise[1])
    assert not torch.equal(draw_noise_fields(1, [50], 64)[0], noise[1])
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.usefixtures("one_core")
def test_recalibration_writes_a_checkpoint_whose_ranks_belong_to_the_weights_it_holds(
    tiny_checkpoint, many_files, tmp_path
):
    folder, new = str(many_files[0].parent), str(tmp_path / "new")
    arguments = ["--model", str(tiny_checkpoint), "--data_dir", folder, "--output_dir", new]
    main([*arguments, "--timesteps", "2", "40", "--seed", "3", "--groups", "none"])
    pipe = AnomalyScoringPipeline.from_pretrained(new)
    config = pipe.calibration.config
    assert (list(config.timesteps), config.num_ranked, config.cross_fitted) == ([2, 40], 24, False)
    assert list(pipe.config.timesteps) == [2, 40]
    expected = fit_calibration(pipe, many_files, [2, 40], seed=3)
    torch.testing.assert_close(pipe.calibration.part_scores, expected.part_scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pipe.calibration.kl_mean, expected.kl_mean, atol=1e-5, rtol=1e-4)
    unchanged = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)
    assert list(unchanged.config.timesteps) == TIMESTEPS


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"--timesteps": ["1000"]}, "1000"),
        ({"--timesteps": ["-1"]}, "-1"),
        ({"--timesteps": ["5", "5"]}, "[5, 5]"),
        ({"--data_dir": ["missing"]}, "missing"),
        ({"--model": ["missing"]}, "missing"),
    ],
)
def test_recalibration_refuses_with_a_sentence_and_writes_nothing(tiny_checkpoint, many_files, tmp_path, options, word):
    arguments = {
        "--model": [str(tiny_checkpoint)],
        "--data_dir": [str(many_files[0].parent)],
        "--output_dir": [str(tmp_path / "new")],
    } | options
    with pytest.raises(SystemExit) as ended:
        main([part for name, values in arguments.items() for part in (name, *values)])
    assert_sentence(str(ended.value.code), word)
    assert not (tmp_path / "new").exists()
