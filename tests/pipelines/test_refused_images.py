"""What is no image, or not one that can be read: a sentence each."""

import io

import numpy as np
import pytest
import torch
from images import grey_ramp, photo
from PIL import Image
from sentences import refused

from pipelines.image_files import MAX_PIXELS
from pipelines.image_preprocessing import preprocess

SIZE = 16


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 4, 4, 3), np.uint8), torch.zeros(0, 3, 4, 4)])
def test_no_image_at_all_is_refused(images):
    with refused(ValueError, "empty"):
        preprocess(images, SIZE)


@pytest.mark.parametrize(
    "image",
    [
        np.broadcast_to(np.uint8(0), (20000, 20000)),
        np.broadcast_to(np.float32(0), (20000, 20000, 3)),
        torch.zeros(1, dtype=torch.uint8).expand(3, 20000, 20000),
    ],
)
def test_enormous_arrays_are_refused_before_they_are_copied(image):
    with refused(ValueError, "20000×20000", "64 million"):
        preprocess(image, SIZE)


def test_enormous_pil_images_are_refused_before_they_are_decoded():
    image = Image.open(io.BytesIO(b"P5 8001 8000 255\n"))  # a header alone: to decode it would fail
    assert image.width * image.height > MAX_PIXELS
    with refused(ValueError, "8001×8000"):
        preprocess(image, SIZE)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_files_cut_short_are_refused_when_they_are_decoded(file_format):
    stream = io.BytesIO()
    Image.fromarray(photo(64, 64)).save(stream, file_format)
    image = Image.open(io.BytesIO(stream.getvalue()[: len(stream.getvalue()) // 2]))
    with refused(ValueError, "image 0", "cannot be decoded"):
        preprocess(image, SIZE)


def test_a_png_with_a_broken_chunk_is_refused_when_it_is_decoded():
    stream = io.BytesIO()
    Image.fromarray(photo(256, 256)).save(stream, "PNG")
    first, second, *rest = stream.getvalue().split(b"IDAT")
    assert rest, "the image should fill several chunks"
    damaged = first + b"IDAT" + second + b"\x00\x01\x02\x03" + b"IDAT".join(rest)
    with refused(ValueError, "image 0", "cannot be decoded"):
        preprocess(Image.open(io.BytesIO(damaged)), SIZE)


def with_value(value, dtype="float32"):
    image = np.full((4, 4, 3), 0.5, dtype)
    image[1, 2, 0] = value
    return image


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (torch.from_numpy(with_value(np.nan)).permute(2, 0, 1), "NaN"),
        (with_value(np.inf), "infinite"),
        (Image.fromarray(with_value(np.nan)[..., 0]), "NaN"),
        (torch.linspace(-1, 1, 48).view(3, 4, 4), "-1"),
        (torch.linspace(-1, 1, 48).view(3, 4, 4).bfloat16(), "-1"),
        (photo(4, 4).astype(np.float32), "[0, 1]"),
        (Image.fromarray(grey_ramp().astype(np.float32)), "255"),
        (with_value(1.001), "[0, 1]"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "32-bit"),
        (Image.fromarray(np.full((4, 4), -1, np.int32)), "32-bit"),
        (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros(4, np.uint8), "(4,)"),
        (torch.zeros(4), "(4,)"),
        (torch.zeros(1, 1, 3, 4, 4), "(1, 1, 3, 4, 4)"),
        (np.zeros((0, 5), np.uint8), "5×0"),
        (np.zeros((5, 0, 3), np.float32), "0×5"),
        (torch.zeros(3, 0, 4), "4×0"),
        (Image.new("RGB", (0, 7)), "0×7"),
    ],
)
def test_values_and_shapes_that_are_no_image_are_refused_with_a_sentence(image, word):
    with refused(ValueError, "image 1", word):
        preprocess([photo(), image], SIZE)


@pytest.mark.parametrize("image", [None, 3.5, b"bytes", {"image": 1}])
def test_objects_that_are_no_image_are_refused_by_their_type(image):
    with refused(TypeError, "image 0", type(image).__name__):
        preprocess(image, SIZE)
