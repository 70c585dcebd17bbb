"""GradientDenoisePipeline through its public call, and its steps against Eq. 1, 3, 12 and 13 stated anew."""

import numpy as np
import pytest
import torch
from PIL import Image
from repairs import QUICK, bar_mask
from sentences import refused

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline

# what a caller sees


def test_images_may_be_paths(repair_pipe, good_tile, tmp_path):
    good_tile.save(tmp_path / "good.png")
    (expected,) = repair_pipe(good_tile, output_type="np", **QUICK).images
    for given in (str(tmp_path / "good.png"), [tmp_path / "good.png"]):
        np.testing.assert_array_equal(repair_pipe(given, output_type="np", **QUICK).images[0], expected)


def test_a_good_image_comes_back_untouched_without_a_step(repair_pipe, tile_scoring, good_tile):
    assert tile_scoring(good_tile).p_value[0] > 0.05
    result = repair_pipe(good_tile, output_type="np")
    assert np.array_equal(result.images[0], np.asarray(good_tile.convert("RGB")))
    assert not result.masks[0].any()
    assert result.is_accepted[0]
    assert len(result.distance[0]) == 1
    assert result.num_resampled[0] == 0


def test_what_scoring_finds_is_changed_and_nothing_else_at_the_images_own_size(repaired_tile, barred):
    before, after, mask = np.asarray(barred), repaired_tile.images[0], repaired_tile.masks[0]
    assert after.shape == before.shape
    assert mask.shape == before.shape[:2]
    assert mask[73:82, 83:96].min() > 0.9  # the bar itself
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert 0 < (mask > 0).mean() < 0.9
    changed = np.abs(before.astype(float) - after)[73:82, 83:96].mean()
    assert changed > 20  # the bar is gone


def test_scores_are_those_that_scoring_gives_the_same_images(repaired_tile, tile_scoring, barred):
    before, after = tile_scoring([barred, Image.fromarray(repaired_tile.images[0])]).anomaly_score
    assert repaired_tile.anomaly_score[0] == pytest.approx(before, abs=1e-3)
    assert repaired_tile.repaired_score[0] == pytest.approx(after, abs=1e-3)


def test_the_curve_holds_a_value_for_every_step_and_equation_13_brings_it_down(repaired_tile):
    distance, resampled = repaired_tile.distance[0], repaired_tile.num_resampled[0]
    assert resampled >= 2
    assert len(distance) == 1 + resampled + QUICK["num_gradient_steps"] + 1
    assert distance[-2] < distance[resampled + 1]


def test_the_distance_of_good_images_is_told_from_the_calibration(repair_pipe, tile_files):
    size = np.asarray(Image.open(tile_files[0])).shape[:2]
    tiles = [Image.open(path).resize(size[::-1]) for path in tile_files]
    output = repair_pipe(tiles, mask=[np.zeros(size, bool)] * len(tiles), output_type="np")
    measured = np.mean([distance[0] for distance in output.distance])
    assert [len(distance) for distance in output.distance] == [1] * len(tiles)
    assert output.good_distance == pytest.approx(measured, rel=0.15)


def test_the_same_image_is_repaired_the_same_alone_in_a_list_and_again(repair_pipe, repaired_tile, barred, good_tile):
    both = repair_pipe([good_tile, barred], output_type="np", **QUICK)
    assert np.array_equal(both.images[1], repaired_tile.images[0])
    assert both.repaired_score[1] == repaired_tile.repaired_score[0]


def test_other_noise_gives_another_repair_reproducibly(repair_pipe, repaired_tile, barred):
    first, second = (
        repair_pipe(barred, output_type="np", generator=torch.Generator().manual_seed(5), **QUICK).images[0]
        for _ in "ab"
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, repaired_tile.images[0])


def test_the_callers_mask_is_what_is_changed_even_in_a_good_image(repair_pipe, good_tile):
    image = good_tile.convert("RGB").resize((192, 200))
    mask = bar_mask()
    for given in (mask, torch.from_numpy(mask), Image.fromarray(mask), Image.fromarray(mask.astype(np.uint8) * 255)):
        result = repair_pipe(image, mask=given, output_type="np", strengths=(0.1,), num_gradient_steps=0)
        assert result.masks[0][mask].min() > 0.9
        far = np.ones_like(mask)
        far[20:150, 10:180] = False
        assert not result.masks[0][far].any()
        assert np.array_equal(result.images[0][far], np.asarray(image)[far])
        assert not np.array_equal(result.images[0][mask], np.asarray(image)[mask])


def test_an_empty_mask_changes_nothing(repair_pipe, barred):
    result = repair_pipe(barred, mask=np.zeros((200, 192), dtype=bool), output_type="np")
    assert np.array_equal(result.images[0], np.asarray(barred))
    assert not result.is_accepted[0]


def test_an_image_that_is_defect_all_over_is_drawn_anew_as_a_whole(repair_pipe, barred):
    result = repair_pipe(barred, mask=np.ones((200, 192)), output_type="np", **QUICK)
    assert result.masks[0].min() == 1
    assert np.isfinite(result.repaired_score).all()


def test_grey_images_stay_grey_and_deep_ones_keep_their_depth(repair_pipe):
    values = np.full((90, 80), 20000, dtype=np.uint16)
    values[30:60, 30:50] = 65535
    grey = repair_pipe(Image.fromarray(values), output_type="np", strengths=(0.1,), num_gradient_steps=0)
    image, mask = grey.images[0], grey.masks[0]
    assert image.dtype == np.float32
    assert image.shape == (90, 80, 3)
    assert (image == image[..., :1]).all()
    assert (image[mask == 0] == np.float32(20000 / 65535)).all() or (mask > 0).all()


def test_output_types_hold_the_same_values(repair_pipe, repaired_tile, barred):
    images = repair_pipe(barred, **QUICK)
    tensors = repair_pipe(barred, output_type="pt", **QUICK)
    assert np.array_equal(np.asarray(images.images[0]), repaired_tile.images[0])
    assert np.array_equal(tensors.images[0].permute(1, 2, 0).numpy(), repaired_tile.images[0])
    assert np.array_equal(np.asarray(images.masks[0]) > 0, repaired_tile.masks[0] > 0)
    plain = repair_pipe(barred, output_type="np", return_dict=False, **QUICK)
    assert np.array_equal(plain[0][0], repaired_tile.images[0])


def test_steps_show_the_way_from_the_given_image_to_the_repair(repair_pipe, repaired_tile, barred):
    result = repair_pipe(barred, return_steps=True, **QUICK)
    assert len(result.steps[0]) == len(result.distance[0])
    assert all(step.size == (64, 64) for step in result.steps[0])
    first = np.asarray(barred.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(first - np.asarray(result.steps[0][0])).max() <= 1
    assert repaired_tile.steps is None


def test_a_callback_sees_every_step_and_can_stop_the_repair(repair_pipe, barred):
    seen = []

    def watch(pipeline, step, timestep, values):
        seen.append((step, timestep, tuple(values["sample"].shape)))
        assert step < pipeline.num_timesteps

    result = repair_pipe(barred, callback_on_step_end=watch, **QUICK)
    assert [step for step, _, _ in seen] == list(range(len(result.distance[0]) - 2))
    assert {shape for _, _, shape in seen} == {(1, 3, 64, 64)}
    assert any(timestep > 0 for _, timestep, _ in seen)

    def stop(pipeline, step, timestep, values):
        pipeline.interrupt = pipeline.interrupt or step == 1

    stopped = repair_pipe(barred, callback_on_step_end=stop, output_type="np", **QUICK)
    assert len(stopped.distance[0]) == 4  # the given image, two steps, the result
    assert stopped.images[0].shape == (200, 192, 3)
    both = repair_pipe([barred, barred], callback_on_step_end=stop, output_type="np", **QUICK)
    assert len(both.distance[1]) == 1  # stopped at the first, the second comes back as it is
    assert np.array_equal(both.images[1], np.asarray(barred))
    assert not both.masks[1].any()
    again = repair_pipe(barred, output_type="np", **QUICK)
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
        ({"false_alarm_rate": 2.5}, ["false_alarm_rate is 2.5;", "0.025 for 2.5 %"]),
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
def test_arguments_out_of_range_are_refused_with_a_sentence(repair_pipe, barred, options, words):
    with refused(ValueError, *words):
        repair_pipe(barred, **options)


def test_what_is_no_mask_is_refused(repair_pipe, barred):
    with refused(TypeError, "mask 0", "bytes"):
        repair_pipe(barred, mask=b"mask.png")


def test_a_checkpoint_without_calibration_or_gaussian_is_refused(tile_scoring, barred):
    with refused(ValueError, "calibration"):
        GradientDenoisePipeline.from_pipe(tile_scoring, calibration=None)(barred)
    with refused(ValueError, "Gaussian"):
        GradientDenoisePipeline.from_pipe(tile_scoring, gaussian=None)(barred)


def test_the_pipelines_share_every_component_and_scoring_is_not_changed(
    repair_pipe, tile_scoring, good_tile, repaired_tile
):
    for name, component in tile_scoring.components.items():
        assert repair_pipe.components[name] is component
    assert (
        tile_scoring(good_tile).anomaly_score[0]
        == AnomalyScoringPipeline.from_pipe(repair_pipe)(good_tile).anomaly_score[0]
    )


def test_the_class_loads_from_the_scoring_pipelines_checkpoint(tiny_checkpoint, barred, repaired_tile):
    loaded = GradientDenoisePipeline.from_pretrained(tiny_checkpoint)
    assert np.array_equal(loaded(barred, output_type="np", **QUICK).images[0], repaired_tile.images[0])


# the equations
