"""Images from folders: finding and reading them, holding some out, and the endless rotated sequence."""

import io
import logging

import numpy as np
import pytest
import torch
from image_folders import SIZE, write_images
from PIL import Image
from sentences import assert_sentence, refused

from pipelines.image_preprocessing import preprocess
from training.data.good_images import GoodImages
from training.data.image_folders import find_images
from training.data.image_reading import read_image
from training.data.layouts import MIN_IMAGES, find_good_images


@pytest.fixture
def images(tmp_path):
    return GoodImages(write_images(tmp_path / "good", 10), SIZE)


def test_a_flat_folder_and_its_subfolders_are_searched_for_every_kind_of_image_file(tmp_path):
    files = write_images(tmp_path, 3) + write_images(tmp_path / "b", 2, suffix=".TIFF")
    files += write_images(tmp_path / "a" / "deep", 2, suffix=".jpeg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(files)
    assert find_images(str(tmp_path)) == sorted(files)


def test_good_images_come_from_a_flat_folder_or_from_train_good_of_a_category(tmp_path):
    flat = write_images(tmp_path / "flat", MIN_IMAGES)
    assert find_good_images(tmp_path / "flat") == flat
    category = tmp_path / "category"
    good = write_images(category / "train" / "good", MIN_IMAGES + 1)
    for unwanted in ("test/good", "test/scratch", "ground_truth/scratch"):
        write_images(category / unwanted, 2)
    assert find_good_images(category) == good


def test_the_fixture_tiles_are_all_found(tile_files):
    assert len(tile_files) == 24
    assert {path.parent.parts[-2:] for path in tile_files} == {("train", "good")}


def test_missing_empty_and_imageless_folders_are_refused_with_a_sentence(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    for index in range(20):
        (texts / f"{index}.txt").write_text("text")
    regular_file = write_images(tmp_path / "one", 1)[0]
    for folder in (tmp_path / "missing", empty, texts, regular_file):
        for find in (find_images, find_good_images):
            with refused(ValueError, str(folder)):
                find(folder)


def test_too_few_images_are_refused_with_both_numbers(tmp_path):
    write_images(tmp_path, 3)
    with refused(ValueError, " 3 ", str(MIN_IMAGES)):
        find_good_images(tmp_path)


def test_damaged_files_among_good_ones_are_left_out_with_a_warning_each(tmp_path, caplog):
    good = write_images(tmp_path, MIN_IMAGES)
    whole = good[0].read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("this is text")
    (tmp_path / "nothing.jpg").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert find_good_images(tmp_path) == good
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 3
    for name in ("truncated.png", "text.png", "nothing.jpg"):
        assert_sentence(next(message for message in messages if name in message), "left out")


def test_damaged_files_do_not_count_towards_the_images_that_are_needed(tmp_path):
    write_images(tmp_path, MIN_IMAGES - 1)
    (tmp_path / "text.png").write_text("this is text")
    with refused(ValueError, str(MIN_IMAGES - 1)):
        find_good_images(tmp_path)


def test_reading_names_the_file_that_cannot_be_read(tmp_path):
    path = write_images(tmp_path, 1, size=(64, 64))[0]
    assert read_image(path).size == (64, 64)
    broken = tmp_path / "broken.png"
    broken.write_bytes(path.read_bytes()[:-30])
    text = tmp_path / "text.png"
    text.write_text("this is text")
    huge = tmp_path / "huge.pgm"
    huge.write_bytes(b"P5 8001 8000 255\n")
    bomb = tmp_path / "bomb.pgm"
    bomb.write_bytes(b"P5 80000 80000 255\n")
    header = tmp_path / "header.pgm"
    header.write_bytes(b"P5 8x 8 255\n")
    for unreadable in (broken, text, huge, bomb, header, tmp_path / "missing.png"):
        with refused(ValueError, unreadable.name):
            read_image(unreadable)


def test_an_image_from_a_file_is_the_sample_that_the_pipeline_sees(tmp_path):
    rng = np.random.default_rng(0)
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    deep = Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16))
    see_through = Image.fromarray(rng.integers(0, 256, (20, 30, 4)).astype(np.uint8))
    turned = Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    deep.save(tmp_path / "deep.png")
    see_through.save(tmp_path / "see_through.png")
    turned.save(tmp_path / "turned.jpg", exif=upside_down)
    images = GoodImages(find_images(tmp_path), SIZE)
    assert len(images) == 3
    for index, path in enumerate(images.files):
        expected = preprocess(Image.open(io.BytesIO(path.read_bytes())), SIZE)[0][0]
        assert images[index].shape == (3, SIZE, SIZE)
        assert torch.equal(images[index], expected)
    assert not torch.equal(images[2], images[2].flip(-1, -2))
