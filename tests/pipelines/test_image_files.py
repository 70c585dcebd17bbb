"""Images by the paths of their files: the same as opened ones; what is no file of this machine is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from images import photo
from PIL import Image
from sentences import refused

from pipelines.image_files import MAX_PIXELS
from pipelines.image_preprocessing import preprocess, read_images, read_mask

SIZE = 16


@pytest.fixture
def photos(tmp_path):
    """An upright PNG, a JPEG that lies on its side by EXIF, and a PNG of 16 bits."""
    files = [tmp_path / name for name in ("upright.png", "turned.jpg", "deep.png")]
    Image.fromarray(photo(20, 30)).save(files[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo(20, 30)).save(files[1], exif=turned)
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(files[2])
    return files


def test_paths_are_read_like_the_images_they_name_also_in_lists(photos):
    opened = [Image.open(path) for path in photos]
    expected, sizes = preprocess(opened, SIZE)
    assert sizes == [(20, 30), (30, 20), (20, 30)]
    for given in (photos, [str(path) for path in photos], [photos[0], opened[1], str(photos[2])]):
        samples, found = preprocess(given, SIZE)
        torch.testing.assert_close(samples, expected, atol=0, rtol=0)
        assert found == sizes
    assert read_images(photos[2])[0].dtype == np.uint16
    torch.testing.assert_close(preprocess(str(photos[0]), SIZE)[0], expected[:1], atol=0, rtol=0)


def test_a_mask_may_be_a_path_too(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png", (8, 8)), torch.eye(8, dtype=torch.bool))


@pytest.mark.parametrize(
    "address",
    ["https://a.com/b.jpg", "HTTP://x/y", "s3://bucket/part.png", "file:///a.png", "data:image/png"],
)
def test_nothing_is_fetched_from_an_address(address):
    with refused(ValueError, "image 1", address, "save the file"):
        preprocess([np.zeros((4, 4), np.uint8), address], SIZE)


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "large.ppm").write_bytes(b"P5 8001 8000 255\n")
    (tmp_path / "larger.ppm").write_bytes(b"P5 80001 80000 255\n")
    Image.fromarray(photo(64, 64)).save(tmp_path / "torn.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "torn.jpg").read_bytes()[:900])
    for name, words in {
        "missing.png": "No such file",
        "notes.png": "not an image in a known format",
        "drawing.eps": "not an image in a known format",
        "large.ppm": "8001×8000",
        "larger.ppm": "pixels",
        "torn.jpg": "truncated",
        "": "directory",
    }.items():
        with refused(ValueError, "image 0", name, words):
            preprocess(tmp_path / name, SIZE)
    assert MAX_PIXELS < 8001 * 8000


def test_a_long_path_is_shown_by_its_end_and_control_characters_not_at_all():
    with refused(ValueError, "/part.png'", "…"):
        preprocess(Path("/folder" * 30, "part.png"), SIZE)
    with refused(ValueError, r"no\x1bimage") as caught:
        preprocess("no\x1bimage", SIZE)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("what", [b"\x89PNG", 7, None, {"path": "part.png"}])
def test_what_is_neither_image_nor_path_is_refused_with_how_to_open_it(what):
    with refused(TypeError, "image 0", type(what).__name__, "PIL.Image.open(...)"):
        preprocess(what, SIZE)
