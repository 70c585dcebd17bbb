"""Labelled test images and their masks, as data sets have them."""

import json
import os

import numpy as np
import pytest
from laid_out import DEFECT, SIZE, lay_out, times, write
from PIL import Image, features
from sentences import refused

from training.data.defect_masks import read_mask_file
from training.data.image_folders import find_images
from training.data.labelled_images import check_labelled_images, find_labelled_images
from training.data.layouts import find_good_images, good_files

FORMATS = [".jfif", ".jpe", ".tga", ".gif", ".jp2", ".avif", ".heic", ".dib", ".pnm", ".webp", ".TIFF", ".JPG"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_pillow_opens_is_found_everywhere(tmp_path, suffix):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif")
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    kind = {".jpe": "JPEG", ".jfif": "JPEG", ".heic": "HEIF", ".dib": "DIB", ".pnm": "PPM"}.get(suffix)
    for index in range(8):
        path = tmp_path / f"{index}{suffix}"
        Image.fromarray(np.full((*SIZE[::-1], 3), 20 * index, np.uint8)).save(path, kind)
    assert len(find_good_images(tmp_path)) == 8


def test_a_folder_of_other_files_says_what_it_holds(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.cr2").write_bytes(b"raw")
    with refused(ValueError, "holds no images", "3 .cr2"):
        find_images(tmp_path)


RED = np.array([255, 0, 0], np.uint8)


def palette(values, colours):
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette(np.array(colours, np.uint8).ravel().tolist())
    return image


OPAQUE = np.full(DEFECT.shape, 255, np.uint8)


def with_alpha(colour, alpha):
    return np.dstack([np.broadcast_to(colour, (*DEFECT.shape, 3)), alpha]).astype(np.uint8)


MASKS = {
    "0 and 255": ("png", lambda: DEFECT.astype(np.uint8) * 255),
    "0 and 1": ("png", lambda: DEFECT.astype(np.uint8)),
    "0 and 100": ("bmp", lambda: DEFECT.astype(np.uint8) * 100),
    "labels": ("png", lambda: np.where(DEFECT, np.arange(SIZE[0]) % 5 + 1, 0).astype(np.uint8)),
    "one bit": ("png", lambda: Image.fromarray(DEFECT)),
    "16 bits, 0 and 1": ("png", lambda: DEFECT.astype(np.uint16)),
    "16 bits of a TIFF": ("tif", lambda: DEFECT.astype(np.uint16) * 65535),
    "red": ("png", lambda: DEFECT[..., None] * RED),
    "red on a palette": ("png", lambda: palette(DEFECT, [[0, 0, 0], [255, 0, 0]])),
    "a palette without black": ("png", lambda: palette(DEFECT, [[255, 255, 255], [255, 0, 0]])),
    "alpha alone": ("png", lambda: with_alpha(0, DEFECT * OPAQUE)),
    "red paint on nothing": (
        "png",
        lambda: with_alpha(RED, DEFECT * OPAQUE),
    ),
    "colour under full alpha": (
        "png",
        lambda: with_alpha(DEFECT[..., None] * RED, OPAQUE),
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_anything_but_the_background_of_a_mask_is_the_defect(tmp_path, name):
    suffix, make = MASKS[name]
    values = make()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(tmp_path / f"mask.{suffix}")
    assert np.array_equal(read_mask_file(tmp_path / f"mask.{suffix}"), DEFECT)


def test_the_noise_of_a_jpeg_is_no_defect(tmp_path):
    large = np.kron(DEFECT, np.ones((16, 16), bool))
    for quality in (60, 90):
        for level in (255, 100):
            Image.fromarray(large * np.uint8(level)).save(tmp_path / "mask.jpg", quality=quality)
            differs = read_mask_file(tmp_path / "mask.jpg") != large
            assert differs.mean() < 0.01
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "empty.jpg")
    assert not read_mask_file(tmp_path / "empty.jpg").any()


def test_edges_that_were_resampled_do_not_make_a_mask_larger(tmp_path):
    large = Image.fromarray(np.kron(DEFECT, np.ones((20, 20), bool)).astype(np.uint8) * 255)
    large.resize((173, 101), Image.Resampling.BICUBIC).save(tmp_path / "mask.png")
    expected = np.asarray(large.resize((173, 101), Image.Resampling.NEAREST)) > 0
    assert (read_mask_file(tmp_path / "mask.png") != expected).mean() < 0.03


def test_what_cannot_be_measured_is_said_and_left_out_of_that_figure_alone(tmp_path, caplog):
    lay_out(
        tmp_path,
        [
            "test/good/0.png",
            *times("test/dent/{}.png", 5),
            "test/loose.png",
            "ground_truth/dent/0_mask.png=mask",
            "ground_truth/dent/1_mask.png=empty",
            "ground_truth/dent/2_mask.png=mask",
        ],
    )
    write(tmp_path / "ground_truth/dent/2_mask.png", np.ones((5, 5), np.uint8))
    (tmp_path / "test/dent/4.png").write_bytes(b"torn")
    items = {
        item.path.name: item for item in check_labelled_images(find_labelled_images(tmp_path)) if item.defect != "good"
    }
    assert {name: item.has_mask for name, item in items.items()} == {"0.png": True, "1.png": False, "2.png": False} | {
        "3.png": False
    }
    said = "\n".join(caplog.messages)
    for words in ("1 image cannot be read and left out: dent/4.png", "empty mask", "3.png", "loose.png", "(5, 5)"):
        assert words in said, words


def test_without_good_test_images_or_masks_there_is_still_something_to_measure(tmp_path):
    lay_out(tmp_path, times("test/dent/{}.png", 3))
    assert [item.has_mask for item in check_labelled_images(find_labelled_images(tmp_path))] == [False] * 3


def test_a_mask_that_could_belong_to_two_images_is_refused(tmp_path):
    lay_out(tmp_path, ["test/good/0.png", "test/bad/000.png", "test/bad/000.jpg", "ground_truth/bad/000_mask.png=mask"])
    with refused(ValueError, "000.jpg and 000.png", "both own the mask 000_mask.png"):
        find_labelled_images(tmp_path)
    twice = lay_out(
        tmp_path / "twice", ["test/good/0.png", "test/bad/0.png", *times("ground_truth/bad/0{}.png=mask", 0)]
    )
    lay_out(twice, ["ground_truth/bad/0.png=mask", "ground_truth/bad/0_mask.png=mask"])
    with refused(ValueError, "0.png of bad has 2 masks"):
        find_labelled_images(twice)


@pytest.mark.parametrize(("orientation", "turn"), [(6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)])
def test_a_mask_drawn_on_the_raw_pixels_is_turned_as_its_image_is(tmp_path, caplog, orientation, turn):
    lay_out(tmp_path, ["test/good/0.png", "test/bad/0.png", "ground_truth/bad/0_mask.png=mask"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.full(SIZE[::-1], 90, np.uint8)).save(tmp_path / "test/bad/0.jpg", exif=exif)
    (tmp_path / "test/bad/0.png").unlink()
    item = next(item for item in check_labelled_images(find_labelled_images(tmp_path)) if item.defect == "bad")
    expected = np.asarray(Image.fromarray(DEFECT).transpose(turn), bool)
    assert np.array_equal(item.read_mask(SIZE), expected)
    assert any("EXIF orientation, turned as well: bad/0.jpg" in message for message in caplog.messages)


def test_where_sizes_cannot_tell_how_a_mask_was_drawn_it_is_said(tmp_path, caplog):
    lay_out(tmp_path, ["test/good/0.png", "ground_truth/bad/0_mask.png=mask"])
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "test/bad").mkdir()
    Image.fromarray(np.full(SIZE[::-1], 90, np.uint8)).save(tmp_path / "test/bad/0.jpg", exif=exif)
    item = next(item for item in check_labelled_images(find_labelled_images(tmp_path)) if item.defect == "bad")
    assert np.array_equal(item.read_mask(SIZE[::-1]), DEFECT)
    assert any("masks are taken as upright: bad/0.jpg" in message for message in caplog.messages)


def test_the_files_of_a_layout_are_found_without_opening_them(tmp_path):
    for index in range(8):
        path = tmp_path / "train" / "good" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not opened")
    assert len(good_files(tmp_path)) == 8
    with refused(ValueError, "holds 0 readable images"):
        find_good_images(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes")
@pytest.mark.parametrize(
    "name", [b"a\xff\xfe.png", b"x" * 240 + b".png", b"two\nlines.png", "🔩.png".encode(), b"con.png"]
)
def test_every_name_can_be_split_listed_and_recorded(tmp_path, name):
    from training.data.splits import hold_out
    from training.records.training_record import hash_names, write_record

    folder = lay_out(tmp_path / "parts", times("{}.png", 9))
    os.rename(folder / "0.png", os.path.join(os.fsencode(folder), name))
    files = find_good_images(folder)
    training, held_out = hold_out(files, 0.5, 0)
    assert sorted(training + held_out) == files
    write_record(tmp_path, {}, None, None, {"parts": files})
    assert len(json.loads((tmp_path / "training.json").read_text())["held_out"]["parts"]) == 9
    assert len(hash_names([path.name for path in files])) == 64
