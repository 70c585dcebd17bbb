"""Images of every kind, made or taken from the fixtures."""

import io
import zipfile

import numpy as np
from paths import TILES
from PIL import Image

from training.data.image_folders import find_images

SIZE = 16
EIGHT_BIT_MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV"]


def grey_ramp(height=SIZE, width=SIZE):
    """uint8, every row from 0 to 255."""
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


def photo(height=SIZE, width=SIZE, seed=0):
    """uint8 RGB noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def saved_and_reopened(image, file_format, **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    stream.seek(0)
    return Image.open(stream)


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def a_tile():
    return find_images(TILES / "test")[0].read_bytes()


def shaded(path):
    """The tile under half the light, as PNG."""
    stream = io.BytesIO()
    Image.open(path).convert("L").point(lambda value: value * 0.5).save(stream, format="PNG")
    return stream.getvalue()
