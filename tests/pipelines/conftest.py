"""A repair pipeline of the tiny checkpoint, and a tile with a defect for it."""

import pytest
from PIL import Image, ImageDraw
from repairs import QUICK

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline


@pytest.fixture(scope="module")
def tile_scoring(tiny_checkpoint):
    return AnomalyScoringPipeline.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def repair_pipe(tile_scoring):
    pipe = GradientDenoisePipeline.from_pipe(tile_scoring)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def good_tile(tile_files):
    return Image.open(tile_files[0])


@pytest.fixture(scope="module")
def barred(good_tile):
    """A good tile at three times the model's size with a white bar on it."""
    image = good_tile.convert("RGB").resize((192, 200))
    image.putpixel((0, 0), (90, 91, 92))  # not quite grey
    ImageDraw.Draw(image).rectangle([80, 70, 98, 84], fill=(200, 200, 200))
    return image


@pytest.fixture(scope="module")
def repaired_tile(repair_pipe, barred):
    return repair_pipe(barred, output_type="np", **QUICK)
