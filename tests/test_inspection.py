"""What the page knows of a picture: the pipeline's own answer, at any rate, without a second forward pass."""

import numpy as np
import pytest
from sentences import assert_sentence

from page.inspection import Inspector
from rendering.regions import find_regions


@pytest.fixture
def inspector(shelf):
    return Inspector(shelf)


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


def test_network_runs_once_for_a_picture_and_again_for_other_settings(inspector, shelf, scratched):
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


def test_areas_of_a_large_picture_are_in_its_own_pixels(inspector, shelf, scratched):
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
    with pytest.raises(ValueError, match="rate") as caught:
        inspector.judge(inspection, percent)
    assert_sentence(str(caught.value))


def test_unknown_models_and_settings_are_refused(inspector, scratched):
    with pytest.raises(ValueError, match="there is no model"):
        inspector.inspect("../../etc", scratched, "a.png")
    with pytest.raises(ValueError, match="choose among the calibrated ones"):
        inspector.inspect("tiny", scratched, "a.png", timesteps=[7])
    with pytest.raises(ValueError, match="whole numbers"):
        inspector.inspect("tiny", scratched, "a.png", timesteps=["<b>"])
    with pytest.raises(ValueError, match="alpha"):
        inspector.inspect("tiny", scratched, "a.png", alpha="half")


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
