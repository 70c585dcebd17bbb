"""The promise for parts that were photographed more than once, and in the precision that scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from sentences import assert_sentence, refused

from page.tabs.verdict import verdict
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from rendering.words import percent
from training.data.splits import part_numbers
from training.fitting.calibration_fit import fit_calibration, split_held_out
from training.fitting.promise import describe_promise

TIMESTEPS = [5, 50, 100]


def grouped(scores, groups, **settings):
    """A calibration filled by hand: good scores, and the part that each image shows."""
    calibration = ScoreCalibration(
        timesteps=[5], resolution=8, grid_size=2, num_ranked=len(scores), num_groups=max(groups) + 1, **settings
    )
    scores = torch.as_tensor(scores, dtype=torch.float32)
    calibration.part_scores.copy_(scores[:, None])
    calibration.map_maxima.copy_(scores)
    calibration.ranked_groups.copy_(torch.tensor(groups))
    return calibration


def test_each_part_weighs_one_and_its_images_share_that_weight():
    calibration = grouped([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 0, 1, 2])
    p_values = calibration.p_value(torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5]), [5])
    expected = [4, 3 + 2 / 3, 3 + 1 / 3, 3, 2, 1]
    assert p_values.tolist() == pytest.approx([each / 4 for each in expected])
    assert calibration.effective_rate(0.001) == 1 / 4
    assert calibration.effective_rate() == 1 / 4
    assert sorted(calibration.independent_scores([5]).tolist()) == [1.0, 4.0, 5.0]


@pytest.mark.parametrize("seed", range(5))
def test_an_image_is_above_the_threshold_just_where_its_p_value_is_within_the_rate(seed):
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, 9, 60))
    groups = np.unique(groups, return_inverse=True)[1].tolist()
    calibration = grouped(rng.normal(size=60).round(1), groups)
    asked = torch.from_numpy(rng.normal(size=400) * 1.5).float()
    asked = torch.cat([asked, calibration.part_scores[0, :, 0]])
    for rate in (0.01, 0.1, 0.15, 0.2, 0.333, 0.5, 0.9, 1.0):
        promised = calibration.effective_rate(rate)
        expected = calibration.p_value(asked, [5]) <= promised + 1e-9
        assert torch.equal(asked > calibration.image_threshold(rate, [5]), expected), rate
        assert calibration.pixel_threshold(rate, 0.3, [5]) == calibration.image_threshold(rate, [5])


def test_of_new_parts_no_more_are_rejected_than_promised_and_by_images_there_would_be():
    """Parts differ more than images of a part, and the worst parts have the most images left out or many."""
    rng = np.random.default_rng(0)
    rejected = {"parts": [], "pictures": []}
    for _ in range(4000):
        sizes = rng.integers(1, 13, 12)
        levels = rng.normal(size=13) - 0.15 * np.append(sizes, 6)  # parts with many images look better
        scores = np.concatenate(
            [level + 0.1 * rng.normal(size=size) for level, size in zip(levels, sizes, strict=False)]
        )
        new = torch.tensor([levels[-1] + 0.15 * 6 - 0.15 * rng.integers(1, 13)], dtype=torch.float32)
        groups = np.repeat(np.arange(12), sizes).tolist()
        by_part = grouped(scores, groups)
        by_image = ScoreCalibration([5], 8, 2, num_ranked=len(scores))
        by_image.part_scores.copy_(by_part.part_scores)
        for name, calibration in (("parts", by_part), ("pictures", by_image)):
            rejected[name].append(calibration.p_value(new, [5]).item() <= 0.2)
    assert np.mean(rejected["parts"]) <= 0.2 + 3 * (0.16 / 4000) ** 0.5
    assert np.mean(rejected["pictures"]) > 0.2 + 3 * (0.16 / 4000) ** 0.5


def test_ranks_of_parts_are_saved_and_damaged_ones_are_refused(tmp_path):
    calibration = grouped([1.0, 2.0, 3.0], [0, 1, 1])
    calibration.save_pretrained(tmp_path)
    again = ScoreCalibration.from_pretrained(tmp_path)
    assert again.weights.tolist() == [1.0, 0.5, 0.5]
    again.check_values()
    again.ranked_groups.fill_(1)
    with refused(ValueError, "ranked_groups", "2 parts"):
        again.check_values()


@pytest.fixture(scope="module")
def parts(tile_files, tmp_path_factory):
    """Good images of 24 parts, two of each: a tile, and the same with a little noise."""
    folder, rng, files = tmp_path_factory.mktemp("parts"), np.random.default_rng(0), []
    for index, path in enumerate(tile_files):
        pixels = np.asarray(Image.open(path).convert("L").resize((64, 64)), np.float32)
        for take in range(2):
            noisy = (pixels + take * rng.normal(0, 3, pixels.shape)).clip(0, 255)
            files.append(folder / f"{index:02d}-{take}.png")
            Image.fromarray(noisy.astype(np.uint8)).save(files[-1])
    return files, {path: path.name[:2] for path in files}


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint, parts):
    files, groups = parts
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, calibration=None)
    pipe.set_progress_bar_config(disable=True)
    calibration = fit_calibration(pipe, files, TIMESTEPS, groups=groups, ranks_bfloat16=True)
    pipe.register_modules(calibration=calibration)
    return pipe


def test_no_part_fits_and_ranks_and_each_ranked_image_knows_its_part(pipe, parts):
    files, groups = parts
    ranked, fitted = split_held_out(files, 0, groups)
    assert {groups[path] for path in ranked} & {groups[path] for path in fitted} == set()
    config = pipe.calibration.config
    assert (config.num_ranked, config.num_groups) == (len(ranked), len(ranked) // 2)
    assert (config.num_fitted, config.num_fitted_groups) == (len(fitted), len(fitted) // 2)
    assert pipe.calibration.ranked_groups.tolist() == part_numbers(ranked, groups)
    said = describe_promise(pipe.calibration)
    assert f"of {len(fitted) // 2} + {len(ranked) // 2} parts" in said
    assert f"from {percent(1 / (len(ranked) // 2 + 1))} up" in said
    assert "guaranteed for new good parts" in said


def test_too_few_parts_are_cross_fitted_part_by_part_however_many_images(tiny_checkpoint, parts):
    files, _ = parts
    groups = {path: f"{int(path.name[:2]) % 10}" for path in files}
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, calibration=None)
    calibration = fit_calibration(pipe, files, [5], groups=groups)
    assert calibration.config.cross_fitted
    assert calibration.num_ranked_groups == 10
    assert_sentence(describe_promise(calibration), "48 good images of 10 parts", "9.1 %", "20 or more parts")


def test_the_words_of_the_page_speak_of_parts(pipe):
    config = pipe.calibration.config
    numbers = {
        "image_threshold": 1.0,
        "p_value": 2.5 / (config.num_groups + 1),
        "is_anomalous": False,
        "anomaly_score": 0.5,
        "warning": "",
        "is_unfamiliar": False,
        "false_alarm_rate": 0.1,
    }
    said = verdict(numbers, config)
    assert f"Of {config.num_groups} good parts" in said
    assert f"in {config.num_ranked} images, about 1.5 scored at least as high" in said
    assert f"holds for new parts and rests on the {config.num_groups} that were compared" in said


# precision


def test_a_verdict_in_bfloat16_is_ranked_among_scores_in_bfloat16(pipe, parts):
    files, groups = parts
    ranked, _ = split_held_out(files, 0, groups)
    images = [Image.open(path) for path in ranked]
    calibration = pipe.calibration
    assert not torch.equal(calibration.part_scores, calibration.bfloat16_part_scores)
    for precision, bfloat16 in (("no", False), ("bf16", True)):
        settings = {
            **pipe.components,
            "patch_size": 4,
            "data_mean": -0.1,
            "data_std": 0.3,
            "mixed_precision": precision,
        }
        scoring = AnomalyScoringPipeline(**settings)
        scoring.set_progress_bar_config(disable=True)
        output = scoring(images)
        own = calibration.ranked_scores(TIMESTEPS, bfloat16)
        np.testing.assert_allclose(output.anomaly_score, own.numpy(), atol=2e-3)
        assert output.image_threshold == calibration.image_threshold(None, TIMESTEPS, bfloat16)
        expected = calibration.p_value(torch.from_numpy(output.anomaly_score), TIMESTEPS, bfloat16)
        assert output.p_value.tolist() == expected.tolist()


def test_bfloat16_without_ranks_of_its_own_is_refused_and_never_chosen(tiny_checkpoint, parts):
    files, _ = parts
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, calibration=None, mixed_precision="bf16")
    pipe.register_modules(calibration=fit_calibration(pipe, files[:8], [5], ranks_bfloat16=False))
    pipe.register_to_config(timesteps=[5])
    with refused(ValueError, "not calibrated in bfloat16", 'mixed_precision to "no"'):
        pipe(Image.open(files[0]))
    pipe.register_to_config(mixed_precision="auto")
    pipe.calibration.register_to_config(bfloat16_deviation=0.0)
    assert not pipe.uses_bfloat16()


def test_weights_in_half_precision_are_said_to_make_the_rate_an_estimate(tiny_checkpoint, parts, caplog):
    pipe = AnomalyScoringPipeline.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16, mixed_precision="no")
    pipe(Image.open(parts[0][0]))
    pipe(Image.open(parts[0][0]))
    (said,) = [message for message in caplog.messages if "estimate" in message]
    assert "bfloat16" in said
