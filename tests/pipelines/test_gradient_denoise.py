"""GradientDenoisePipeline through its public call, and its steps against Eq. 1, 3, 12 and 13 stated anew."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from paths import ROOT
from PIL import Image, ImageDraw
from sentences import refused

from pipelines import defect_search, square_repair
from pipelines.gaussian_diffusion import predict_sample
from pipelines.image_preprocessing import normalize_contrast, preprocess
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from pipelines.repair_masks import transfer_grain
from pipelines.repair_settings import RepairSettings, reverse_timesteps
from pipelines.repaired_image import GivenSquare
from pipelines.reverse_process import ReverseProcess, descend

QUICK = {"num_inference_steps": 20, "num_gradient_steps": 5}


@pytest.fixture(scope="module")
def scoring(tiny_checkpoint):
    return AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def pipe(scoring):
    pipe = GradientDenoisePipeline.from_pipe(scoring)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def good(tile_files):
    return Image.open(tile_files[0])


@pytest.fixture(scope="module")
def defective(good):
    """A good tile at three times the model's size with a white bar on it."""
    image = good.convert("RGB").resize((192, 200))
    image.putpixel((0, 0), (90, 91, 92))  # not quite grey
    ImageDraw.Draw(image).rectangle([80, 70, 98, 84], fill=(200, 200, 200))
    return image


@pytest.fixture(scope="module")
def output(pipe, defective):
    return pipe(defective, output_type="np", **QUICK)


def bar_mask():
    mask = np.zeros((200, 192), dtype=bool)
    mask[70:101, 60:131] = True
    return mask


def settings_of(**changes):
    """Settings of a short repair."""
    base = {
        "num_inference_steps": 20, "strengths": (0.1,), "num_searches": 1, "num_resamples": 1, "fill_mask": True,
        "num_gradient_steps": 3, "learning_rate": 0.02, "gradient_scale": 0.15, "denoise_every": None,
        "use_memory": True,
    }  # fmt: skip
    return RepairSettings(**(base | changes))


def given_square(pipe, image):
    return GivenSquare.of(preprocess(image, pipe.resolution)[0], pipe.config.data_mean, pipe.config.data_std)


def process_of(pipe, given, seed=0):
    """The reverse process for an image."""
    noise = torch.Generator().manual_seed(seed)
    return ReverseProcess(pipe.predict, pipe.scheduler.alphas_cumprod, given.pixel_range, noise)


def descent(pipe, given, hole, **changes):
    """Samples after each iteration of Eq. 13 from the given image on."""
    settings = settings_of(**changes)

    def gradient_of(sample):
        return given.grey(square_repair.eq12_gradient(pipe, sample, settings.use_memory))

    with torch.no_grad():
        yield from descend(process_of(pipe, given), given.sample, given.sample, hole, gradient_of, settings)


# what a caller sees


def test_a_good_image_comes_back_untouched_without_a_step(pipe, scoring, good):
    assert scoring(good).p_value[0] > 0.05
    result = pipe(good, output_type="np")
    assert np.array_equal(result.images[0], np.asarray(good.convert("RGB")))
    assert not result.masks[0].any()
    assert result.is_accepted[0]
    assert len(result.distance[0]) == 1
    assert result.num_resampled[0] == 0


def test_what_scoring_finds_is_changed_and_nothing_else_at_the_images_own_size(output, defective):
    before, after, mask = np.asarray(defective), output.images[0], output.masks[0]
    assert after.shape == before.shape
    assert mask.shape == before.shape[:2]
    assert mask[73:82, 83:96].min() > 0.9  # the bar itself
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert 0 < (mask > 0).mean() < 0.9
    changed = np.abs(before.astype(float) - after)[73:82, 83:96].mean()
    assert changed > 20  # the bar is gone


def test_scores_are_those_that_scoring_gives_the_same_images(output, scoring, defective):
    before, after = scoring([defective, Image.fromarray(output.images[0])]).anomaly_score
    assert output.anomaly_score[0] == pytest.approx(before, abs=1e-3)
    assert output.repaired_score[0] == pytest.approx(after, abs=1e-3)


def test_the_curve_holds_a_value_for_every_step_and_equation_13_brings_it_down(output):
    distance, resampled = output.distance[0], output.num_resampled[0]
    assert resampled >= 2
    assert len(distance) == 1 + resampled + QUICK["num_gradient_steps"] + 1
    assert distance[-2] < distance[resampled + 1]


def test_the_same_image_is_repaired_the_same_alone_in_a_list_and_again(pipe, output, defective, good):
    both = pipe([good, defective], output_type="np", **QUICK)
    assert np.array_equal(both.images[1], output.images[0])
    assert both.repaired_score[1] == output.repaired_score[0]


def test_other_noise_gives_another_repair_reproducibly(pipe, output, defective):
    first, second = (
        pipe(defective, output_type="np", generator=torch.Generator().manual_seed(5), **QUICK).images[0] for _ in "ab"
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, output.images[0])


def test_the_callers_mask_is_what_is_changed_even_in_a_good_image(pipe, good):
    image = good.convert("RGB").resize((192, 200))
    mask = bar_mask()
    for given in (mask, torch.from_numpy(mask), Image.fromarray(mask), Image.fromarray(mask.astype(np.uint8) * 255)):
        result = pipe(image, mask=given, output_type="np", strengths=(0.1,), num_gradient_steps=0)
        assert result.masks[0][mask].min() > 0.9
        far = np.ones_like(mask)
        far[20:150, 10:180] = False
        assert not result.masks[0][far].any()
        assert np.array_equal(result.images[0][far], np.asarray(image)[far])
        assert not np.array_equal(result.images[0][mask], np.asarray(image)[mask])


def test_an_empty_mask_changes_nothing(pipe, defective):
    result = pipe(defective, mask=np.zeros((200, 192), dtype=bool), output_type="np")
    assert np.array_equal(result.images[0], np.asarray(defective))
    assert not result.is_accepted[0]


def test_an_image_that_is_defect_all_over_is_drawn_anew_as_a_whole(pipe, defective):
    result = pipe(defective, mask=np.ones((200, 192)), output_type="np", **QUICK)
    assert result.masks[0].min() == 1
    assert np.isfinite(result.repaired_score).all()


def test_grey_images_stay_grey_and_deep_ones_keep_their_depth(pipe):
    values = np.full((90, 80), 20000, dtype=np.uint16)
    values[30:60, 30:50] = 65535
    grey = pipe(Image.fromarray(values), output_type="np", strengths=(0.1,), num_gradient_steps=0)
    image, mask = grey.images[0], grey.masks[0]
    assert image.dtype == np.float32
    assert image.shape == (90, 80, 3)
    assert (image == image[..., :1]).all()
    assert (image[mask == 0] == np.float32(20000 / 65535)).all() or (mask > 0).all()


def test_output_types_hold_the_same_values(pipe, output, defective):
    images = pipe(defective, **QUICK)
    tensors = pipe(defective, output_type="pt", **QUICK)
    assert np.array_equal(np.asarray(images.images[0]), output.images[0])
    assert np.array_equal(tensors.images[0].permute(1, 2, 0).numpy(), output.images[0])
    assert np.array_equal(np.asarray(images.masks[0]) > 0, output.masks[0] > 0)
    plain = pipe(defective, output_type="np", return_dict=False, **QUICK)
    assert np.array_equal(plain[0][0], output.images[0])


def test_steps_show_the_way_from_the_given_image_to_the_repair(pipe, output, defective):
    result = pipe(defective, return_steps=True, **QUICK)
    assert len(result.steps[0]) == len(result.distance[0])
    assert all(step.size == (64, 64) for step in result.steps[0])
    first = np.asarray(defective.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(first - np.asarray(result.steps[0][0])).max() <= 1
    assert output.steps is None


def test_a_callback_sees_every_step_and_can_stop_the_repair(pipe, defective):
    seen = []

    def watch(pipeline, step, timestep, values):
        seen.append((step, timestep, tuple(values["sample"].shape)))

    result = pipe(defective, callback_on_step_end=watch, **QUICK)
    assert [step for step, _, _ in seen] == list(range(len(result.distance[0]) - 2))
    assert {shape for _, _, shape in seen} == {(1, 3, 64, 64)}
    assert any(timestep > 0 for _, timestep, _ in seen)

    def stop(pipeline, step, timestep, values):
        pipeline.interrupt = pipeline.interrupt or step == 1

    stopped = pipe(defective, callback_on_step_end=stop, output_type="np", **QUICK)
    assert len(stopped.distance[0]) == 4  # the given image, two steps, the result
    assert stopped.images[0].shape == (200, 192, 3)
    both = pipe([defective, defective], callback_on_step_end=stop, output_type="np", **QUICK)
    assert len(both.distance[1]) == 1  # stopped at the first, the second comes back as it is
    assert np.array_equal(both.images[1], np.asarray(defective))
    assert not both.masks[1].any()
    again = pipe(defective, output_type="np", **QUICK)
    assert len(again.distance[0]) == len(result.distance[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_inference_steps": 0}, ["num_inference_steps", "0", "1000"]),
        ({"strengths": (0.1, 1.5)}, ["strengths", "1.5"]),
        ({"num_resamples": 0}, ["num_resamples"]),
        ({"num_searches": 0}, ["num_searches"]),
        ({"denoise_every": 0}, ["denoise_every"]),
        ({"learning_rate": -1}, ["learning_rate", "-1"]),
        ({"num_gradient_steps": -2}, ["num_gradient_steps"]),
        ({"false_alarm_rate": 0}, ["false_alarm_rate"]),
        ({"output_type": "jpg"}, ["jpg"]),
        ({"mask": np.ones((5, 7))}, ["mask 0", "7×5", "192×200"]),
        ({"mask": [np.ones((200, 192))] * 2}, ["1 images", "2 masks"]),
        ({"mask": np.ones((200, 192, 3))}, ["mask 0", "(200, 192, 3)"]),
        ({"mask": Image.new("RGB", (192, 200))}, ["mask 0", "one channel"]),
        ({"learning_rate": 10, "gradient_scale": 1}, ["learning_rate", "gradient_scale"]),
        ({"num_inference_steps": 1}, ["num_inference_steps", "2"]),
        ({"false_alarm_rate": None}, ["false_alarm_rate", "None"]),
        ({"category": "screw"}, ["screw"]),
    ],
)
def test_arguments_out_of_range_are_refused_with_a_sentence(pipe, defective, options, words):
    with refused(ValueError, *words):
        pipe(defective, **options)


def test_what_is_no_mask_is_refused(pipe, defective):
    with refused(TypeError, "mask 0", "str"):
        pipe(defective, mask="mask.png")


def test_a_checkpoint_without_calibration_or_gaussian_is_refused(scoring, defective):
    with refused(ValueError, "calibration"):
        GradientDenoisePipeline.from_pipe(scoring, calibration=None)(defective)
    with refused(ValueError, "Gaussian"):
        GradientDenoisePipeline.from_pipe(scoring, gaussian=None)(defective)


def test_the_pipelines_share_every_component_and_scoring_is_not_changed(pipe, scoring, good, output):
    for name, component in scoring.components.items():
        assert pipe.components[name] is component
    assert scoring(good).anomaly_score[0] == AnomalyScoringPipeline.from_pipe(pipe)(good).anomaly_score[0]


def test_the_class_loads_from_the_scoring_pipelines_checkpoint(tiny_checkpoint, defective, output):
    loaded = GradientDenoisePipeline.from_pretrained(tiny_checkpoint)
    assert np.array_equal(loaded(defective, output_type="np", **QUICK).images[0], output.images[0])


# the equations


def test_equation_12_is_the_mahalanobis_distance_summed_over_places(pipe, defective):
    sample, _ = preprocess(defective, 64)
    gaussian, channels = pipe.gaussian, pipe.gaussian.config.num_features
    size, cells = gaussian.config.grid_size, gaussian.config.num_cells
    features = pipe.feature_extractor(sample)[0].double() - gaussian.mean.double()
    rows, columns = torch.tril_indices(channels, channels)
    total = 0.0
    for y in range(size):
        for x in range(size):
            whitening = torch.zeros(channels, channels, dtype=torch.float64)
            cell = (y * cells // size) * cells + x * cells // size
            whitening[rows, columns] = gaussian.packed_whitening[cell].double()
            whitening *= gaussian.whitening_scale[cell].double()[:, None]
            precision = whitening.T @ whitening  # the inverse covariance
            total += features[:, y, x] @ precision @ features[:, y, x]
    assert pipe.eq12(sample, [1.0, 0.0, 0.0]).item() == pytest.approx(total.item() / channels, rel=1e-4)


def test_a_grey_image_descends_along_grey_gradients(pipe, good):
    given = given_square(pipe, good)
    moved = next(descent(pipe, given, torch.ones(1, 1, 64, 64), learning_rate=0.5, gradient_scale=0.1))
    assert torch.equal(moved[:, 0], moved[:, 1])
    step = moved - (1 - 0.05**2) ** 0.5 * given.sample
    assert step.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-3)


def test_a_repair_runs_within_inference_mode_too(pipe, output, defective):
    with torch.inference_mode():
        result = pipe(defective, output_type="np", **QUICK)
    assert np.array_equal(result.images[0], output.images[0])


def test_a_step_of_equation_13_subtracts_the_gradient_scaled_as_documented(pipe, defective):
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 20:30, 20:40] = 1
    given = given_square(pipe, defective)
    start = normalize_contrast(preprocess(defective, 64)[0], pipe.config.data_mean, pipe.config.data_std)
    moved = next(descent(pipe, given, hole, use_memory=False, learning_rate=0.5, gradient_scale=0.1))

    raw = preprocess(defective, 64)[0].requires_grad_(True)
    distance = pipe.gaussian(pipe.feature_extractor(raw)).square().sum()
    gradient = torch.autograd.grad(distance, raw)[0] * hole
    gradient = gradient * 0.1 / (gradient.square().sum() / (3 * hole.sum())).sqrt()
    beta_hat = (0.5 * 0.1) ** 2
    expected = (1 - beta_hat) ** 0.5 * start - 0.5 * gradient
    inside = (hole > 0).expand_as(start)
    torch.testing.assert_close(moved[inside], expected[inside], atol=1e-5, rtol=1e-4)
    assert torch.equal(moved[~inside], given.sample[~inside])


def test_small_steps_of_equation_13_bring_the_distance_down(pipe, defective):
    given, everywhere = given_square(pipe, defective), torch.ones(1, 1, 64, 64)
    moved = descent(pipe, given, everywhere, gradient_scale=0.05, num_gradient_steps=8)
    with torch.no_grad():
        distances = [pipe.eq12(given.to_square(drawn), [1.0, 0.0, 0.0]).item() for drawn in moved]
    assert distances[-1] < 0.99 * distances[0]


@pytest.fixture
def search(pipe, defective, monkeypatch):
    """Repairs an image in which scoring finds one place, then another; returns the holes that were redrawn."""

    def run(places, **changes):
        holes, found, resample = [], iter(places), square_repair.resample

        def find(*_):
            mask = torch.zeros(64, 64, dtype=torch.bool)
            mask[next(found)] = True
            return mask

        def watch(process, known, start, hole, *args):
            holes.append(hole[0, 0] > 0)
            return resample(process, known, start, hole, *args)

        monkeypatch.setattr(square_repair, "find_defect", find)
        monkeypatch.setattr(square_repair, "resample", watch)
        options = {"strengths": (0.1,), "num_gradient_steps": 0, "num_inference_steps": 20, "output_type": "np"}
        return pipe(defective, **options | changes), holes

    return run


FIRST, SECOND = np.s_[25:35, 25:35], np.s_[5:10, 5:10]


def test_what_scoring_still_marks_joins_the_mask_and_all_of_it_is_drawn_anew(search):
    result, holes = search([FIRST, SECOND, SECOND, SECOND], num_searches=3)
    assert len(holes) == 2
    assert holes[0][FIRST].all()
    assert not holes[0][SECOND].any()
    assert holes[1][FIRST].all()
    assert holes[1][SECOND].all()
    assert result.num_resampled[0] == len(result.distance[0]) - 2
    alone, holes = search([FIRST], num_searches=1)
    assert len(holes) == 1
    # the better of the two is what comes back, with its own mask
    assert result.repaired_score[0] <= alone.repaired_score[0]
    is_wider = result.repaired_score[0] < alone.repaired_score[0]
    assert np.array_equal(result.masks[0], alone.masks[0]) != is_wider


def test_the_last_search_marks_widely_and_counts_only_if_its_result_is_accepted(search, monkeypatch):
    kept, holes = search([FIRST, FIRST, SECOND], num_searches=2)
    assert len(holes) == 2
    assert holes[1][SECOND].all()
    assert not kept.is_accepted[0]
    alone, _ = search([FIRST], num_searches=1)
    assert np.array_equal(kept.images[0], alone.images[0])
    assert np.array_equal(kept.masks[0], alone.masks[0])
    monkeypatch.setattr(square_repair, "accepts", lambda pipe, score, rate: score < alone.repaired_score[0])
    wide, holes = search([FIRST, FIRST, SECOND], num_searches=2)
    assert len(holes) == 2
    is_better = wide.repaired_score[0] < alone.repaired_score[0]
    assert np.array_equal(wide.masks[0], alone.masks[0]) != is_better


def test_each_further_search_marks_what_is_less_certain(pipe, defective, monkeypatch):
    rates, pixel_threshold = [], type(pipe.calibration).pixel_threshold

    def watch(calibration, rate, *args):
        rates.append(rate)
        return pixel_threshold(calibration, rate, *args)

    _, components = square_repair.score_square(pipe, preprocess(defective, 64)[0])
    monkeypatch.setattr(type(pipe.calibration), "pixel_threshold", watch)
    found = [defect_search.find_defect(pipe, components, 0.1, search) for search in range(3)]
    assert rates == pytest.approx([0.1, 0.4, 0.5])
    assert all(mask.any() for mask in found)
    assert not torch.equal(found[0], found[1])
    defect_search.find_defect(pipe, components, 0.7, 2)
    assert rates[-1] == 0.7


def test_the_progress_bar_has_room_for_every_search(pipe, search, monkeypatch):
    totals, progress_bar = [], type(pipe).progress_bar

    def watch(pipe, iterable=None, total=None):
        totals.append(total)
        return progress_bar(pipe, iterable, total)

    monkeypatch.setattr(type(pipe), "progress_bar", watch)
    result, _ = search([FIRST, SECOND, SECOND, SECOND], num_searches=3)
    assert totals[0] >= result.num_resampled[0]
    alone, _ = search([FIRST], num_searches=1)
    assert totals[0] == 3 * totals[1] == 3 * alone.num_resampled[0]


def test_a_search_that_finds_nothing_new_and_a_given_mask_are_drawn_once(search):
    assert len(search([FIRST] * 4, num_searches=3)[1]) == 1
    assert len(search([], num_searches=3, mask=bar_mask())[1]) == 1


def test_only_a_found_mask_is_grown_by_what_a_map_may_miss(search, monkeypatch):
    given = search([], mask=bar_mask())[1][0].sum()
    found = search([FIRST], num_searches=1)[1][0].sum()
    monkeypatch.setattr(square_repair, "FOUND_GROWTH", 4 / 64)
    assert search([], mask=bar_mask())[1][0].sum() == given
    assert search([FIRST], num_searches=1)[1][0].sum() > found


def test_a_reverse_step_is_that_of_diffusers_scheduler_where_nothing_is_clipped(pipe, good):
    given = given_square(pipe, good)
    process = process_of(pipe, given)
    timesteps, step_size = reverse_timesteps(1.0, 50, 1000)
    scheduler = DDPMScheduler.from_config(
        pipe.scheduler.config, variance_type="fixed_small", timestep_spacing="trailing"
    )
    alphas = scheduler.alphas_cumprod
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == timesteps
    timestep = timesteps[-5]
    noisy_sample = process.add_noise(given.sample, timestep)
    t = torch.tensor([timestep])
    with torch.no_grad():
        drawn, mean, log_variance = process.reverse(noisy_sample, timestep, step_size)
        predicted_noise, _, _ = pipe.predict(noisy_sample, t)
    low, high = given.pixel_range
    free = (drawn > low + 1e-4) & (drawn < high - 1e-4)
    assert free.float().mean() > 0.1
    torch.testing.assert_close(drawn[free], predict_sample(noisy_sample, predicted_noise, alphas, t)[free])
    assert drawn.min() >= low - 1e-6
    assert drawn.max() <= high + 1e-6
    clipped = (noisy_sample - alphas[timestep].sqrt() * drawn) / (1 - alphas[timestep]).sqrt()
    scheduler._get_variance = lambda *args, **kwargs: torch.tensor(0.0)
    stepped = scheduler.step(clipped, timestep, noisy_sample).prev_sample
    torch.testing.assert_close(mean, stepped, atol=2e-4, rtol=1e-3)
    assert log_variance.exp().max() <= (1 - alphas[timestep] / alphas[timestep - step_size]) * 1.001  # beta_t


def test_resampling_again_adds_the_noise_between_two_timesteps(pipe, good):
    process = process_of(pipe, given_square(pipe, good))
    zeros = torch.zeros(1, 3, 64, 64)
    alphas = pipe.scheduler.alphas_cumprod
    process.randn_like = torch.ones_like
    assert process.forward(zeros, 300, 20)[0, 0, 0, 0] == pytest.approx((1 - alphas[300] / alphas[280]).sqrt().item())
    assert process.forward(zeros + 1, 300, 20)[0, 0, 0, 0] == pytest.approx(
        ((alphas[300] / alphas[280]).sqrt() + (1 - alphas[300] / alphas[280]).sqrt()).item()
    )


def test_algorithm_1_is_a_setting(pipe, defective, monkeypatch):
    drawn_at, reverse, seen = [], ReverseProcess.reverse, []

    def watch(process, noisy_sample, timestep, step_size):
        drawn_at.append((len(seen) + 1, timestep, step_size))
        return reverse(process, noisy_sample, timestep, step_size)

    monkeypatch.setattr(ReverseProcess, "reverse", watch)
    options = {"strengths": (), "denoise_every": 2, "gradient_scale": 1, "use_memory": False, "num_gradient_steps": 5}
    result = pipe(defective, mask=np.ones((200, 192)), callback_on_step_end=lambda *_: seen.append(1), **options)
    assert len(result.distance[0]) == 7
    assert result.num_resampled[0] == 0
    alphas = pipe.scheduler.alphas_cumprod
    timestep = drawn_at[0][1]
    assert 1 - alphas[timestep] >= 2 * 0.02**2 > 1 - alphas[timestep - 1]  # the noise that two iterations have added
    assert drawn_at == [(2, timestep, 1), (4, timestep, 1)]  # the second and the fourth iteration


@pytest.mark.parametrize("size", [1, 3])
def test_a_trained_model_removes_a_synthetic_defect_and_its_image_is_accepted(size):
    pipe = GradientDenoisePipeline.from_pretrained(ROOT / "checkpoints" / "magnetic-tile")
    pipe.set_progress_bar_config(disable=True)
    good = Image.open(ROOT / "examples" / "good-1.jpg").convert("RGB")
    good = good.resize((good.width * size, good.height * size))
    synthetic = good.copy()
    width, height = good.size
    for place in range(0, width // 5, 3):  # a comb finer than the model's square
        ImageDraw.Draw(synthetic).line([width // 5 + place, height // 2, width // 5 + place, 0.55 * height], fill=0)
    spot = [width // 2, height // 3, width // 2 + width // 16, height // 3 + height // 16]
    ImageDraw.Draw(synthetic).ellipse(spot, fill=(250, 250, 250))
    marked = (np.asarray(good) != np.asarray(synthetic)).any(axis=-1)
    # At three times the size the comb is too faint on the square to be found as a whole.
    result = pipe(synthetic, mask=None if size == 1 else marked, output_type="np")
    truth, before, after = (np.asarray(image).astype(float) for image in (good, synthetic, result.images[0]))
    assert ((after - truth) ** 2)[before != truth].sum() < 0.15 * ((before - truth) ** 2).sum()
    assert not np.array_equal(before, after)
    assert result.is_accepted[0]
    assert result.distance[0][-1] < result.distance[0][0]
    assert result.repaired_score[0] < result.anomaly_score[0] - 1
    untouched = result.masks[0] == 0
    assert untouched.mean() > 0.7
    assert np.array_equal(before[untouched], after[untouched])


def test_grain_is_transferred_in_a_repair(pipe, defective, monkeypatch):
    calls = []

    def count(*tensors):
        calls.append(len(tensors))
        return transfer_grain(*tensors)

    monkeypatch.setattr("pipelines.reverse_process.transfer_grain", count)
    pipe(defective, num_inference_steps=20, num_gradient_steps=0, num_searches=1)
    assert 1 <= len(calls) <= 2
