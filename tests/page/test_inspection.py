"""What the page knows of an image: the pipeline's own answer, at any rate, without a second forward pass."""

import json

import numpy as np
import pytest
from paths import TILE
from PIL import Image
from sentences import refused
from serving import assert_same_verdict

from page.server.uploads import file_stem, keep_drawing
from page.tabs.verdict import colour_scale, verdict
from page.work.inspection import COMPONENTS, HEAT_MAP, Inspector
from pipelines.image_preprocessing import to_rgb
from rendering.heat_map import OUTLINE_COLOR, outline, overlay, saturation_of
from rendering.regions import find_regions


@pytest.fixture
def inspector(shelf):
    return Inspector(shelf)


@pytest.fixture(scope="module")
def faint():
    """A tile with a slightly brighter bar: accepted by the tiny pipeline at 4 %, rejected at 20 %."""
    pixels = np.array(Image.open(TILE).convert("L")).astype(int)
    pixels[100:140, 40:80] += 20
    return to_rgb(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def test_verdict_is_the_pipelines_own_at_every_rate(inspector, shelf, scratched):
    inspection = inspector.inspect("tiny", scratched, "scratched.png")
    for percent in (4, 20, 50):
        output = shelf.get("tiny").scoring(scratched, false_alarm_rate=percent / 100)
        numbers, mask = inspector.judge(inspection, percent)
        assert numbers["anomaly_score"] == output.anomaly_score[0]
        assert numbers["p_value"] == output.p_value[0]
        assert numbers["is_anomalous"] == output.is_anomalous[0]
        assert numbers["pixel_threshold"] == output.pixel_threshold
        np.testing.assert_array_equal(mask, output.pred_mask[0])
        assert numbers["defect_pixels"] == output.pred_mask[0].sum()
        assert (numbers["height"], numbers["width"]) == scratched.shape[:2]
        assert sum(region["area"] for region in numbers["regions"]) == numbers["defect_pixels"]
    assert numbers["defect_pixels"] > 0


@pytest.mark.parametrize("view", [HEAT_MAP, *COMPONENTS])
def test_image_is_compared_with_outlined_and_numbered_places(inspector, scratched, view):
    inspection = inspector.inspect("tiny", scratched, "scratched.png")
    mask = np.zeros(scratched.shape[:2], bool)
    mask[100:140, 40:80] = True
    regions = find_regions(mask, inspection.anomaly_map)
    image, beside = inspector.compared(inspection, view, mask, regions)
    np.testing.assert_array_equal(image, inspection.image)
    values = inspection.anomaly_map if view == HEAT_MAP else getattr(inspection, view)
    outlined = outline(overlay(inspection.image, values, inspection.saturation), mask)
    np.testing.assert_array_equal(beside[mask], outlined[mask])
    assert (beside != outlined).any()  # the number


def test_small_images_are_shown_enlarged_so_that_numbers_can_be_read(inspector, scratched):
    small = scratched[90:150, 30:90]
    inspection = inspector.inspect("tiny", small, "small.png")
    numbers, mask = inspector.judge(inspection, 100)
    image, beside = inspector.compared(inspection, HEAT_MAP, mask, numbers["regions"])
    assert image.shape == beside.shape == (300, 300, 3)
    np.testing.assert_array_equal(image[::5, ::5], small)


def test_drawings_are_kept_once_under_their_names(upload_folder):
    pixels = np.full((4, 6, 3), 7, np.uint8)
    path = keep_drawing(pixels, "tile-heat-map.png")
    assert path.endswith("/tile-heat-map.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    assert keep_drawing(pixels, "tile-heat-map.png") == path
    assert keep_drawing(pixels.reshape(6, 4, 3), "tile-heat-map.png") != path


def test_everything_is_rejected_at_a_hundred_per_cent_and_the_numbers_are_json(inspector, scratched):
    numbers, mask = inspector.judge(inspector.inspect("tiny", scratched, "a.png"), 100)
    assert numbers["is_anomalous"]
    assert mask.all()
    assert "Infinity" not in json.dumps(numbers)
    assert "every part is rejected" in verdict(numbers, inspector.shelf.get("tiny").scoring.calibration.config)
    assert "everything is outlined" in colour_scale(3.0, numbers["pixel_threshold"])


def test_network_runs_once_for_an_image_and_again_for_other_settings(inspector, shelf, scratched):
    calls = []
    hook = shelf.get("tiny").scoring.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        first = inspector.inspect("tiny", scratched, "a.png")
        once = len(calls)
        assert inspector.inspect("tiny", scratched.copy(), "a.png") is first
        inspector.judge(first, 4)
        inspector.judge(first, 20)
        assert len(calls) == once
        other = inspector.inspect("tiny", scratched, "a.png", timesteps=["5"], alpha=1)
        assert len(calls) > once
    finally:
        hook.remove()
    assert other.score == shelf.get("tiny").scoring(scratched, timesteps=[5], alpha=1.0).anomaly_score[0]


def test_large_images_are_remembered_up_to_a_number_of_pixels(inspector, scratched, monkeypatch):
    monkeypatch.setattr("page.work.inspection.KEPT_PIXELS", 2 * scratched[..., 0].size)
    inspections = [inspector.inspect("tiny", scratched, name) for name in ("a.png", "b.png", "c.png")]
    assert inspector.inspect("tiny", scratched, "c.png") is inspections[2]
    assert inspector.inspect("tiny", scratched, "b.png") is inspections[1]
    assert inspector.inspect("tiny", scratched, "a.png") is not inspections[0]


def test_areas_of_a_large_image_are_in_its_own_pixels(inspector, shelf, scratched):
    large = np.repeat(np.repeat(scratched, 12, axis=0), 12, axis=1)
    output = shelf.get("tiny").scoring(large, false_alarm_rate=0.2)
    inspection = inspector.inspect("tiny", large, "large.png")
    numbers, mask = inspector.judge(inspection, 20)
    assert max(mask.shape) == 1024
    assert numbers["height"] == large.shape[0]
    assert numbers["defect_pixels"] == pytest.approx(output.pred_mask[0].sum(), rel=0.02)
    rows, columns = output.pred_mask[0].nonzero()
    largest = numbers["regions"][0]
    assert largest["x"] >= columns.min() - 12
    assert largest["x"] + largest["width"] <= columns.max() + 12
    assert largest["y"] + largest["height"] <= rows.max() + 12


@pytest.mark.parametrize("percent", [0, -3, 101, "much", None, True, float("nan")])
def test_rates_out_of_range_are_refused(inspector, scratched, percent):
    inspection = inspector.inspect("tiny", scratched, "a.png")
    with refused(ValueError, "rate"):
        inspector.judge(inspection, percent)


def test_unknown_models_and_settings_are_refused(inspector, scratched):
    with pytest.raises(ValueError, match="there is no model"):
        inspector.inspect("../../etc", scratched, "a.png")
    with pytest.raises(ValueError, match="choose among the calibrated ones"):
        inspector.inspect("tiny", scratched, "a.png", timesteps=[7])
    with refused(ValueError, "at least one"):
        inspector.inspect("tiny", scratched, "a.png", timesteps=[])
    with pytest.raises(ValueError, match="whole numbers"):
        inspector.inspect("tiny", scratched, "a.png", timesteps=["<b>"])
    with pytest.raises(ValueError, match="alpha"):
        inspector.inspect("tiny", scratched, "a.png", alpha="half")


def test_another_rate_changes_the_verdict_without_a_forward_pass(inspector, tiny_pipeline, faint):
    calls = []
    hook = inspector.shelf.get("tiny").scoring.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        inspection = inspector.inspect("tiny", faint, "faint.png")
        asked = len(calls)
        verdicts = [inspector.judge(inspection, percent)[0] for percent in (4, 20)]
        assert inspector.inspect("tiny", faint, "faint.png") is inspection
        assert len(calls) == asked > 0
    finally:
        hook.remove()
    assert [numbers["is_anomalous"] for numbers in verdicts] == [False, True]
    for numbers, rate in zip(verdicts, (0.04, 0.2), strict=True):
        assert_same_verdict(numbers, tiny_pipeline(faint, false_alarm_rate=rate))


def test_heat_map_and_outline_are_those_of_the_pipelines_map(inspector, tiny_pipeline, scratched):
    output = tiny_pipeline(scratched, false_alarm_rate=0.2)
    inspection = inspector.inspect("tiny", scratched, "scratched.png")
    _, mask = inspector.judge(inspection, 20)
    np.testing.assert_array_equal(inspection.image, scratched)
    drawn = outline(overlay(scratched, output.anomaly_map[0], saturation_of(tiny_pipeline)), output.pred_mask[0])
    heat = inspector.outlined(inspection, mask)
    assert output.pred_mask[0].any()
    assert np.abs(heat.astype(int) - drawn).mean() < 0.1
    np.testing.assert_array_equal((heat == OUTLINE_COLOR).all(axis=-1), (drawn == OUTLINE_COLOR).all(axis=-1))


def test_another_rate_moves_the_outline_and_no_colour(inspector, scratched):
    inspection = inspector.inspect("tiny", scratched, "scratched.png")
    (strict, strict_mask), (loose, loose_mask) = (inspector.judge(inspection, percent) for percent in (4, 20))
    assert loose["defect_share"] > strict["defect_share"] > 0
    heat, moved = inspector.outlined(inspection, strict_mask), inspector.outlined(inspection, loose_mask)
    unlined = (heat != OUTLINE_COLOR).any(axis=-1) & (moved != OUTLINE_COLOR).any(axis=-1)
    np.testing.assert_array_equal(heat[unlined], moved[unlined])
    assert (heat != moved).any()


def test_images_inspected_together_are_judged_as_alone(inspector, faint, scratched):
    together = inspector.inspect_together("tiny", [faint, scratched[:50]], ["faint.png", "cut.png"])
    for inspection, image, file in zip(together, (faint, scratched[:50]), ("faint.png", "cut.png"), strict=True):
        alone = inspector.inspect("tiny", image, file)
        assert (inspection.file, inspection.size) == (alone.file, alone.size)
        assert inspection.score == pytest.approx(alone.score, abs=1e-4)
        np.testing.assert_allclose(inspection.anomaly_map, alone.anomaly_map, atol=1e-3)


def test_regions_are_listed_largest_first_with_their_boxes_and_peaks():
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = True  # one region: they touch at a corner
    mask[3:6, 4:8] = True
    anomaly_map = np.arange(48, dtype=np.float32).reshape(6, 8)
    assert find_regions(mask, anomaly_map) == [
        {"x": 4, "y": 3, "width": 4, "height": 3, "area": 12, "peak": 47.0},
        {"x": 0, "y": 0, "width": 2, "height": 2, "area": 2, "peak": 9.0},
    ]
    assert find_regions(mask, anomaly_map, scale=2.0)[0] == {
        "x": 8,
        "y": 6,
        "width": 8,
        "height": 6,
        "area": 48,
        "peak": 47.0,
    }
    assert find_regions(np.zeros((2, 2), bool), np.zeros((2, 2))) == []


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("R&D part.png", "R&D part"),
        ("名" * 90 + ".png", "名" * 33),
        ("<b>x.png", "bx"),
        ("a\0b.png", "ab"),
        ("", "file"),
    ],
)
def test_results_are_named_after_the_image_as_any_file_system_takes_it(name, stem):
    assert file_stem(name) == stem
