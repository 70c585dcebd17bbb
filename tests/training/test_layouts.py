"""The data people really have: which images show good parts, which of a test set a defect, and what nobody meant."""

import logging
import os

import numpy as np
import pytest
from laid_out import DEFECT, SIZE, lay_out, times, write
from sentences import refused

from training.data.image_folders import find_images
from training.data.labelled_images import check_labelled_images, find_labelled_images
from training.data.layouts import find_good_images

KNOWN = {
    "MVTec-AD": (
        [
            *times("train/good/{:03}.png"),
            "test/good/000.png",
            "test/crack/000.png",
            "ground_truth/crack/000_mask.png=mask",
        ],
        "train/good",
        {"good": 1, "crack": 1},
    ),
    "MVTec-AD in capitals": (
        [*times("Train/Good/{:03}.PNG"), "Test/Good/000.PNG", "Test/Crack/000.PNG", "Ground_Truth/Crack/000.tif=mask"],
        "Train/Good",
        {"good": 1, "Crack": 1},
    ),
    "MVTec AD 2": (
        [
            *times("train/good/{:03}_regular.png"),
            "validation/good/000_regular.png",
            "test_public/good/000_regular.png",
            "test_public/bad/000_regular.png",
            "test_public/ground_truth/bad/000_regular_mask.png=mask",
            "test_private/000_regular.png",
        ],
        "train/good",
        {"good": 1, "bad": 1},
    ),
    "LOCO": (
        [
            *times("train/good/{:03}.png"),
            "validation/good/000.png",
            "test/good/000.png",
            "test/logical_anomalies/000.png",
            "test/structural_anomalies/000.png",
            "ground_truth/logical_anomalies/000/000.png=mask",
            "ground_truth/logical_anomalies/000/001.png=mask",
            "ground_truth/structural_anomalies/000/000.png=mask",
        ],
        "train/good",
        {"good": 1, "logical_anomalies": 1, "structural_anomalies": 1},
    ),
    "BTAD": (
        [*times("train/ok/{:04}.bmp"), "test/ok/0000.bmp", "test/ko/0000.bmp", "ground_truth/ko/0000.png=mask"],
        "train/ok",
        {"good": 1, "ko": 1},
    ),
    "VisA": (
        [*times("Data/Images/Normal/{:04}.JPG"), "Data/Images/Anomaly/000.JPG", "Data/Masks/Anomaly/000.png=mask"],
        "Data/Images/Normal",
        {"good": 8, "Anomaly": 1},
    ),
    "VisA by its split tool": (
        [*times("train/good/{:04}.JPG"), "test/good/0000.JPG", "test/bad/000.JPG", "ground_truth/bad/000.png=mask"],
        "train/good",
        {"good": 1, "bad": 1},
    ),
    "MPDD": (
        [
            *times("train/good/{:03}.png"),
            "test/good/000.png",
            "test/parts_mismatch/000.png",
            "ground_truth/parts_mismatch/000_mask.png=mask",
        ],
        "train/good",
        {"good": 1, "parts_mismatch": 1},
    ),
    "train/normal, masks flat": (
        [*times("train/normal/{}.png"), "test/normal/0.png", "test/broken/7.png", "masks/broken/7.png=mask"],
        "train/normal",
        {"good": 1, "broken": 1},
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_layouts_are_understood_for_training_and_for_testing(tmp_path, name):
    names, good, expected = KNOWN[name]
    category = lay_out(tmp_path / "category", names)
    assert find_good_images(category) == find_images(category / good)
    labelled = check_labelled_images(find_labelled_images(category))
    counts = {item.defect: 0 for item in labelled}
    for item in labelled:
        counts[item.defect] += 1
        assert item.has_mask
        marked = item.read_mask(SIZE[::-1])
        assert np.array_equal(marked, DEFECT if item.defect != "good" else np.zeros_like(DEFECT))
    assert counts == expected


def test_the_masks_of_an_image_in_loco_are_put_together(tmp_path):
    lay_out(tmp_path, ["test/good/0.png", "test/logical/0.png", "ground_truth/logical/0/000.png=mask"])
    other = np.zeros(SIZE[::-1], np.uint8)
    other[8:10, 12:15] = 3
    write(tmp_path / "ground_truth/logical/0/001.png", other)
    _, item = find_labelled_images(tmp_path)
    assert np.array_equal(item.read_mask(SIZE[::-1]), DEFECT | (other > 0))


def test_kolektors_images_are_good_where_the_mask_beside_them_is_empty(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = [f"kos{i:02}/Part{k}" for i in range(5) for k in range(2)]
    masks = [f"{name}_label.bmp={'mask' if name == 'kos02/Part1' else 'empty'}" for name in images]
    first = lay_out(tmp_path / "KolektorSDD", [*[f"{name}.jpg" for name in images], *masks])
    good = find_good_images(first)
    assert len(good) == 9
    assert first / "kos02/Part1.jpg" not in good
    assert any("the 9 whose mask is empty are good" in message for message in caplog.messages)
    assert sorted(item.defect for item in find_labelled_images(first)) == ["defect"] + ["good"] * 9
    second = lay_out(
        tmp_path / "KolektorSDD2",
        [
            *times("train/1{:04}.png", 10),
            *times("train/1{:04}_GT.png=empty", 9),
            "train/10009_GT.png=mask",
            "test/20000.png",
            "test/20000_GT.png=mask",
            "test/20001.png",
            "test/20001_GT.png=empty",
        ],
    )
    assert [path.name for path in find_good_images(second)] == times("1{:04}.png", 9)
    assert [item.defect for item in find_labelled_images(second)] == ["defect", "good"]


REFUSED = {
    "a data set whose training images have no class": (
        [*times("train/{}.png"), "test/bad/0.png"],
        ["train (8 images)"],
    ),
    "several categories": (
        [*times("nut/train/good/{}.png"), "nut/test/bad/0.png"],
        ["test (1 image)", "nut/train/good"],
    ),
    "classes": ([*times("ok/{}.png"), *times("scratch/{}.png", 3)], ["scratch (3 images)", "/ok"]),
    "classes without a known name": ([*times("good/{}.png"), "b7/0.png"], ["good (8 images)", "other images"]),
    "images beside a folder of good ones": ([*times("good/{}.png"), "0.png"], ["good (8 images)"]),
    "masks": ([*times("{}.png"), *times("masks/{}.png=mask")], ["masks (8 images)"]),
    "masks of some": ([*times("{}.png"), "0_mask.png=mask"], ["masks beside 1 of 8 images", "1.png"]),
    "names that say what is bad": ([*times("OK_{}.png"), *times("NG_{}.png", 2)], ["…ng….png (2 images)"]),
    "an evaluation set": ([*times("validation/{}.png")], ["validation (8 images)"]),
    "both of two good folders": ([*times("train/ok/{}.png"), *times("train/good/{}.png")], ["train (16 images)"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_what_was_seen_and_what_settles_it(tmp_path, name):
    names, words = REFUSED[name]
    folder = lay_out(tmp_path / "data", names)
    with refused(ValueError, "data", *words, "--train_data_dir"):
        find_good_images(folder)
    assert len(find_good_images(folder, all_good=True)) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        times("{}.png"),
        [*times("2024-05-01/{}.png"), *times("2024-05-02/{}.png")],
        [*times("camera 1/shift a/{}.png"), "camera 2/0.png"],
        times("good/{}.png"),
        times("no_defect_{}.png"),
        times("parts/ok/{}.png"),
    ],
)
def test_a_folder_of_good_images_is_taken_as_it_is(tmp_path, names):
    assert len(find_good_images(lay_out(tmp_path / "data", names))) == len(names)


# folders nobody meant, links, formats, names


def test_folders_that_programs_keep_are_left_out_and_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [*times("{}.png"), "._0.png", "Thumbs.db.d/9.png"]
    for folder in (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "a/.git", "$RECYCLE.BIN"):
        names += [f"{folder}/0.png", f"{folder}/deep/1.png"]
    lay_out(tmp_path, names)
    assert [path.name for path in find_images(tmp_path)] == ["0.png", *[f"{i}.png" for i in range(1, 8)], "9.png"]
    (said,) = [message for message in caplog.messages if "left out" in message]
    assert "13 images" in said
    assert "__MACOSX" in said


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_linked_folders_are_followed_once_and_loops_are_not(tmp_path):
    lay_out(tmp_path / "disk", ["a/0.png", "a/deep/1.png", "b/2.png"])
    folder = tmp_path / "parts"
    (folder / "own").mkdir(parents=True)
    lay_out(folder, ["own/3.png"])
    (folder / "x").symlink_to(tmp_path / "disk" / "a")
    (folder / "y").symlink_to(tmp_path / "disk")
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "own" / "again").symlink_to(folder / "own")
    (folder / "nothing").symlink_to(tmp_path / "gone")
    (folder / "itself").symlink_to(folder / "itself")
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == ["own/3.png", "x/0.png", "x/deep/1.png", "y/b/2.png"]


# masks


# labelled images: everything is looked at first
