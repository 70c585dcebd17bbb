"""An inspected picture at any false alarm rate: what the pipeline says, without asking it again."""

import numpy as np
import pytest
from conftest import TILES
from PIL import Image
from sentences import refused
from serving import assert_same_verdict

from page.inspection import Inspector
from page.model_shelf import ModelShelf
from pipelines.image_preprocessing import to_rgb
from rendering.heat_map import OUTLINE_COLOR, outline, overlay, saturation_of

TILE = TILES / "test" / "blowhole" / "exp1_num_4944.jpg"
"""Accepted by the tiny pipeline at 4 % and at 20 %."""


@pytest.fixture(scope="module")
def inspector(tiny_checkpoint):
    return Inspector(ModelShelf([tiny_checkpoint]))


@pytest.fixture(scope="module")
def faint():
    """A tile with a slightly brighter bar: accepted by the tiny pipeline at 4 %, rejected at 20 %."""
    pixels = np.array(Image.open(TILE).convert("L")).astype(int)
    pixels[100:140, 40:80] += 30
    return to_rgb(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


@pytest.fixture(scope="module")
def scratched():
    """A tile with a bright bar, which the tiny pipeline rejects and outlines at 4 %, and more of it at 20 %."""
    pixels = np.array(Image.open(TILE).convert("L"))
    pixels[100:140, 40:80] = pixels[100:140, 40:80].clip(min=130)
    return to_rgb(Image.fromarray(pixels))


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
    np.testing.assert_array_equal(inspection.picture, scratched)
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


def test_pictures_inspected_together_are_judged_as_alone(inspector, faint, scratched):
    together = inspector.inspect_together("tiny", [faint, scratched[:50]], ["faint.png", "cut.png"])
    for inspection, picture, file in zip(together, (faint, scratched[:50]), ("faint.png", "cut.png"), strict=True):
        alone = inspector.inspect("tiny", picture, file)
        assert (inspection.file, inspection.size) == (alone.file, alone.size)
        assert inspection.score == pytest.approx(alone.score, abs=1e-4)
        np.testing.assert_allclose(inspection.anomaly_map, alone.anomaly_map, atol=1e-3)


@pytest.mark.parametrize("percent", [0, -3, 101, "much", None, True, float("nan")])
def test_rates_out_of_range_are_refused_in_one_sentence(inspector, scratched, percent):
    with refused(ValueError, "rate"):
        inspector.judge(inspector.inspect("tiny", scratched, "scratched.png"), percent)
