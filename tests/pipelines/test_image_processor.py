"""What a checkpoint draws by itself: heat maps over images with outlined defects, and the scale of their colours."""

import numpy as np
import pytest
from images import photo
from paths import TILE
from PIL import Image
from sentences import refused

from pipelines.heat_map import LEGEND_GREY, OUTLINE_COLOR, outline, overlay, saturation_of
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline


@pytest.fixture(scope="module")
def both(scratched):
    """A rejected image and a small one."""
    return [Image.fromarray(scratched), Image.fromarray(photo(20, 30))]


@pytest.fixture(scope="module")
def result(tiny_pipeline, both):
    return tiny_pipeline(both, false_alarm_rate=0.3)


def test_heat_maps_lie_over_the_images_at_their_own_size_with_defects_outlined(tiny_pipeline, both, result):
    drawn = tiny_pipeline.image_processor.visualize(result, both)
    assert result.pred_mask[0].any()
    saturation = saturation_of(tiny_pipeline)
    for found, image, anomaly_map, mask in zip(drawn, both, result.anomaly_map, result.pred_mask, strict=True):
        expected = outline(overlay(np.asarray(image), anomaly_map, saturation), mask)
        np.testing.assert_array_equal(np.asarray(found), expected)
    assert (np.asarray(drawn[0]) == OUTLINE_COLOR).all(axis=-1).any()


@pytest.mark.parametrize("output_type", ["pt", "pil"])
def test_any_output_type_is_drawn_alike(tiny_pipeline, both, result, output_type):
    other = tiny_pipeline(both, false_alarm_rate=0.3, output_type=output_type)
    expected = tiny_pipeline.image_processor.visualize(result, both)
    for found, image in zip(tiny_pipeline.image_processor.visualize(other, both), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_one_image_may_be_a_path_and_none_at_all_leaves_grey_under_the_map(tiny_pipeline):
    processor, result = tiny_pipeline.image_processor, tiny_pipeline(TILE)
    with Image.open(TILE) as tile:
        (expected,) = processor.visualize(result, tile)
    np.testing.assert_array_equal(np.asarray(processor.visualize(result, str(TILE))[0]), np.asarray(expected))
    (bare,) = processor.visualize(result)
    grey = np.full((*result.anomaly_map[0].shape, 3), LEGEND_GREY, np.uint8)
    overlaid = outline(overlay(grey, result.anomaly_map[0], saturation_of(tiny_pipeline)), result.pred_mask[0])
    np.testing.assert_array_equal(np.asarray(bare), overlaid)


def test_images_of_16_bits_are_shown_by_the_models_white_level(tiny_pipeline):
    pipe = AnomalyScoringPipeline.from_pipe(tiny_pipeline, white_level=4095)
    deep = np.full((8, 8), 4095, np.uint16)
    result = pipe(deep)
    result.anomaly_map[0] = np.zeros((8, 8), np.float32)
    result.pred_mask[0] = np.zeros((8, 8), bool)
    assert (np.asarray(pipe.image_processor.visualize(result, deep)[0]) == 255).all()


def test_the_category_decides_where_the_colours_end(unified, both):
    pipe = AnomalyScoringPipeline.from_pretrained(unified)
    with refused(ValueError, "tile, negative"):
        pipe.image_processor.visualize(pipe(both[1], category="tile"), both[1])
    result = pipe(both[1], category="negative")
    (drawn,) = pipe.image_processor.visualize(result, both[1], category="negative")
    (alone,) = pipe.for_category("negative").image_processor.visualize(result, both[1])
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(alone))


def test_the_legend_shows_the_scale_marks_the_threshold_and_has_labels(tiny_pipeline, result):
    drawn = np.asarray(tiny_pipeline.image_processor.legend(result, width=300))
    assert drawn.shape == (60, 300, 3)
    marked = np.flatnonzero((drawn[:24] == OUTLINE_COLOR).all(axis=(0, 2)))
    place = min(result.pixel_threshold / saturation_of(tiny_pipeline), 1) * 299
    assert abs(marked.mean() - place) <= 2
    labels, title = drawn[24:40], drawn[44:]
    assert (labels[:, :40] < 100).any()
    assert (labels[:, -40:] < 100).any()
    assert (title[:, 100:200] < 100).any()


def test_what_is_no_result_of_these_images_is_refused(tiny_pipeline, both, result):
    processor = tiny_pipeline.image_processor
    with refused(ValueError, "not the images of this result"):
        processor.visualize(result, both[::-1])
    with refused(ValueError, "not the images of this result"):
        processor.visualize(result, both[0])
    with refused(TypeError, "AnomalyScoringPipeline", "ndarray"):
        processor.visualize(result.anomaly_map[0])


def test_the_processor_is_no_component_and_belongs_to_both_pipelines(tiny_pipeline, tiny_checkpoint, both, result):
    assert "image_processor" not in tiny_pipeline.components
    assert "image_processor" not in (tiny_checkpoint / "model_index.json").read_text()
    repair = GradientDenoisePipeline.from_pipe(tiny_pipeline)
    for found, expected in zip(
        repair.image_processor.visualize(result, both),
        tiny_pipeline.image_processor.visualize(result, both),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    samples = tiny_pipeline.image_processor.preprocess(both)
    assert samples.shape == (2, 3, 64, 64)
