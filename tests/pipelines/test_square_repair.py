"""The steps of a repair against Eq. 1, 3, 12 and 13 stated anew; where it searches, what a trained model removes."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from paths import ROOT
from PIL import Image, ImageDraw
from repairs import QUICK, bar_mask, settings_of

from pipelines import defect_search, square_repair
from pipelines.gaussian_diffusion import predict_sample
from pipelines.image_preprocessing import normalize_contrast, preprocess
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from pipelines.repair_masks import transfer_grain
from pipelines.repair_settings import reverse_timesteps
from pipelines.repaired_image import GivenSquare
from pipelines.reverse_process import ReverseProcess, descend


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


def test_equation_12_is_the_mahalanobis_distance_summed_over_places(repair_pipe, barred):
    sample, _ = preprocess(barred, 64)
    gaussian, channels = repair_pipe.gaussian, repair_pipe.gaussian.config.num_features
    size, cells = gaussian.config.grid_size, gaussian.config.num_cells
    features = repair_pipe.feature_extractor(sample)[0].double() - gaussian.mean.double()
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
    assert repair_pipe.eq12(sample, [1.0, 0.0, 0.0]).item() == pytest.approx(total.item() / channels, rel=1e-4)


def test_a_grey_image_descends_along_grey_gradients(repair_pipe, good_tile):
    given = given_square(repair_pipe, good_tile)
    moved = next(descent(repair_pipe, given, torch.ones(1, 1, 64, 64), learning_rate=0.5, gradient_scale=0.1))
    assert torch.equal(moved[:, 0], moved[:, 1])
    step = moved - (1 - 0.05**2) ** 0.5 * given.sample
    assert step.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-3)


def test_a_repair_runs_within_inference_mode_too(repair_pipe, repaired_tile, barred):
    with torch.inference_mode():
        result = repair_pipe(barred, output_type="np", **QUICK)
    assert np.array_equal(result.images[0], repaired_tile.images[0])


def test_a_step_of_equation_13_subtracts_the_gradient_scaled_as_documented(repair_pipe, barred):
    hole = torch.zeros(1, 1, 64, 64)
    hole[..., 20:30, 20:40] = 1
    given = given_square(repair_pipe, barred)
    start = normalize_contrast(preprocess(barred, 64)[0], repair_pipe.config.data_mean, repair_pipe.config.data_std)
    moved = next(descent(repair_pipe, given, hole, use_memory=False, learning_rate=0.5, gradient_scale=0.1))

    raw = preprocess(barred, 64)[0].requires_grad_(True)
    distance = repair_pipe.gaussian(repair_pipe.feature_extractor(raw)).square().sum()
    gradient = torch.autograd.grad(distance, raw)[0] * hole
    gradient = gradient * 0.1 / (gradient.square().sum() / (3 * hole.sum())).sqrt()
    beta_hat = (0.5 * 0.1) ** 2
    expected = (1 - beta_hat) ** 0.5 * start - 0.5 * gradient
    inside = (hole > 0).expand_as(start)
    torch.testing.assert_close(moved[inside], expected[inside], atol=1e-5, rtol=1e-4)
    assert torch.equal(moved[~inside], given.sample[~inside])


def test_small_steps_of_equation_13_bring_the_distance_down(repair_pipe, barred):
    given, everywhere = given_square(repair_pipe, barred), torch.ones(1, 1, 64, 64)
    moved = descent(repair_pipe, given, everywhere, gradient_scale=0.05, num_gradient_steps=8)
    with torch.no_grad():
        distances = [repair_pipe.eq12(given.to_square(drawn), [1.0, 0.0, 0.0]).item() for drawn in moved]
    assert distances[-1] < 0.99 * distances[0]


@pytest.fixture
def search(repair_pipe, barred, monkeypatch):
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
        return repair_pipe(barred, **options | changes), holes

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


def test_each_further_search_marks_what_is_less_certain(repair_pipe, barred, monkeypatch):
    rates, pixel_threshold = [], type(repair_pipe.calibration).pixel_threshold

    def watch(calibration, rate, *args):
        rates.append(rate)
        return pixel_threshold(calibration, rate, *args)

    _, components = square_repair.score_square(repair_pipe, preprocess(barred, 64)[0])
    monkeypatch.setattr(type(repair_pipe.calibration), "pixel_threshold", watch)
    found = [defect_search.find_defect(repair_pipe, components, 0.1, search) for search in range(3)]
    assert rates == pytest.approx([0.1, 0.4, 0.5])
    assert all(mask.any() for mask in found)
    assert not torch.equal(found[0], found[1])
    defect_search.find_defect(repair_pipe, components, 0.7, 2)
    assert rates[-1] == 0.7


def test_the_progress_bar_has_room_for_every_search(repair_pipe, search, monkeypatch):
    totals, progress_bar = [], type(repair_pipe).progress_bar

    def watch(repair_pipe, iterable=None, total=None):
        totals.append(total)
        return progress_bar(repair_pipe, iterable, total)

    monkeypatch.setattr(type(repair_pipe), "progress_bar", watch)
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


def test_a_reverse_step_is_that_of_diffusers_scheduler_where_nothing_is_clipped(repair_pipe, good_tile):
    given = given_square(repair_pipe, good_tile)
    process = process_of(repair_pipe, given)
    timesteps, step_size = reverse_timesteps(1.0, 50, 1000)
    scheduler = DDPMScheduler.from_config(
        repair_pipe.scheduler.config, variance_type="fixed_small", timestep_spacing="trailing"
    )
    alphas = scheduler.alphas_cumprod
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == timesteps
    timestep = timesteps[-5]
    noisy_sample = process.add_noise(given.sample, timestep)
    t = torch.tensor([timestep])
    with torch.no_grad():
        drawn, mean, log_variance = process.reverse(noisy_sample, timestep, step_size)
        predicted_noise, _, _ = repair_pipe.predict(noisy_sample, t)
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


def test_resampling_again_adds_the_noise_between_two_timesteps(repair_pipe, good_tile):
    process = process_of(repair_pipe, given_square(repair_pipe, good_tile))
    zeros = torch.zeros(1, 3, 64, 64)
    alphas = repair_pipe.scheduler.alphas_cumprod
    process.randn_like = torch.ones_like
    assert process.forward(zeros, 300, 20)[0, 0, 0, 0] == pytest.approx((1 - alphas[300] / alphas[280]).sqrt().item())
    assert process.forward(zeros + 1, 300, 20)[0, 0, 0, 0] == pytest.approx(
        ((alphas[300] / alphas[280]).sqrt() + (1 - alphas[300] / alphas[280]).sqrt()).item()
    )


def test_algorithm_1_is_a_setting(repair_pipe, barred, monkeypatch):
    drawn_at, reverse, seen = [], ReverseProcess.reverse, []

    def watch(process, noisy_sample, timestep, step_size):
        drawn_at.append((len(seen) + 1, timestep, step_size))
        return reverse(process, noisy_sample, timestep, step_size)

    monkeypatch.setattr(ReverseProcess, "reverse", watch)
    options = {"strengths": (), "denoise_every": 2, "gradient_scale": 1, "use_memory": False, "num_gradient_steps": 5}
    result = repair_pipe(barred, mask=np.ones((200, 192)), callback_on_step_end=lambda *_: seen.append(1), **options)
    assert len(result.distance[0]) == 7
    assert result.num_resampled[0] == 0
    alphas = repair_pipe.scheduler.alphas_cumprod
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


def test_grain_is_transferred_in_a_repair(repair_pipe, barred, monkeypatch):
    calls = []

    def count(*tensors):
        calls.append(len(tensors))
        return transfer_grain(*tensors)

    monkeypatch.setattr("pipelines.reverse_process.transfer_grain", count)
    repair_pipe(barred, num_inference_steps=20, num_gradient_steps=0, num_searches=1)
    assert 1 <= len(calls) <= 2
