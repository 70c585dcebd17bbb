"""The data people really have: which images show good parts, which of a test set a defect, and what nobody meant."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image, features
from sentences import refused

from training.data.defect_masks import read_mask_file
from training.data.image_folders import find_images
from training.data.labelled_images import check_labelled_images, find_labelled_images
from training.data.layouts import find_good_images, good_files

SIZE = (20, 12)
DEFECT = np.zeros(SIZE[::-1], bool)
DEFECT[3:6, 4:9] = True


def write(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(SIZE[::-1], 90, np.uint8) if values is None else values
    Image.fromarray(values).save(path)
    return path


def lay_out(root, names):
    """Write a grey image for every name, a black mask for `=empty`, one with a defect for `=mask`."""
    for name in names:
        name, _, kind = name.partition("=")
        values = {"": None, "empty": np.zeros(SIZE[::-1], np.uint8), "mask": DEFECT.astype(np.uint8) * 255}[kind]
        write(root / name, values)
    return root


def times(pattern, count=8):
    return [pattern.format(index) for index in range(count)]


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


# masks

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


# labelled images: everything is looked at first


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
