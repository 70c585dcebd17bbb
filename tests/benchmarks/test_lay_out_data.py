"""The data sets of the results, laid out from archives like the official ones but of tiny images."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from archives import encoded, write_archive
from PIL import Image
from PIL.JpegImagePlugin import get_sampling
from sentences import refused

from benchmarks.data_sets import CATEGORIES, counted
from benchmarks.lay_out_data import lay_out, main
from training.data.labelled_images import find_labelled_images

BY_NAME = {category.name: category for category in CATEGORIES}
SCREW = replace(BY_NAME["screw"], counts=counted(2, 1, {"scratch_head": 1}), source_size=8, size=4)
BOTTLE = replace(BY_NAME["bottle"], counts=counted(1, 1, {"contamination": 1}), source_size=9, size=5)

BLACK = np.zeros((8, 8), np.uint8)
DOT = BLACK.copy()
DOT[3, 6] = 255


def screws(prefix="mvtec_anomaly_detection/"):
    """An archive's files of the tiny category `SCREW`."""
    images = ("train/good/000", "train/good/001", "test/good/000", "test/scratch_head/000")
    files = {f"{prefix}screw/{name}.png": encoded(BLACK + 40 * place) for place, name in enumerate(images)}
    files[f"{prefix}screw/ground_truth/scratch_head/000_mask.png"] = encoded(DOT)
    return files | {f"{prefix}screw/license.txt": b"terms", f"{prefix}cable/train/good/000.png": b"not looked at"}


def pixels(path):
    return np.asarray(Image.open(path))


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".zip"])
@pytest.mark.parametrize("prefix", ["mvtec_anomaly_detection/", ""])
def test_a_category_of_mvtec_keeps_its_split_and_is_made_smaller(tmp_path, suffix, prefix):
    archive = write_archive(tmp_path / f"mvtec{suffix}", screws(prefix))
    assert list(lay_out(archive, tmp_path / "data", [SCREW])) == ["screw"]
    screw = tmp_path / "data" / "screw"
    images = {"train/good/000.png", "train/good/001.png", "test/good/000.png", "test/scratch_head/000.png"}
    assert files_below(tmp_path / "data") == {
        f"screw/{name}" for name in (*images, "ground_truth/scratch_head/000_mask.png", "license.txt")
    }
    assert pixels(screw / "test/good/000.png").tolist() == [[80] * 4] * 4
    expected = np.zeros((4, 4))
    expected[1, 3] = 255  # a pixel is marked where any part of it was
    assert (pixels(screw / "ground_truth/scratch_head/000_mask.png") == expected).all()
    assert [item.defect for item in find_labelled_images(screw)] == ["good", "scratch_head"]


def test_colour_images_become_jpeg_files(tmp_path):
    colour = np.full((9, 9, 3), (200, 100, 50))
    names = ("train/good/000", "test/good/000", "test/contamination/000")
    files = {f"bottle/{name}.png": encoded(colour) for name in names}
    files["bottle/ground_truth/contamination/000_mask.png"] = encoded(np.full((9, 9), 255))
    lay_out(write_archive(tmp_path / "bottle.tar.xz", files), tmp_path, [SCREW, BOTTLE])
    image = Image.open(tmp_path / "bottle/train/good/000.jpg")
    assert (image.size, image.mode, image.format) == ((5, 5), "RGB", "JPEG")
    assert get_sampling(image) == 0  # colour as fine as brightness
    assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() < 4
    assert pixels(tmp_path / "bottle/ground_truth/contamination/000_mask.png").min() == 255


def test_tiles_are_split_by_the_physical_tile(tmp_path):
    frames = [7, 157, 308, 458, 609, 1000, 2000, 3000]  # 150 apart is one tile, 151 is two
    tile = encoded(BLACK, "JPEG")
    files = {f"Tiles-master/MT_Free/Imgs/exp{frame % 6}_num_{frame}.jpg": tile for frame in frames}
    files |= {name.replace(".jpg", ".png"): encoded(BLACK) for name in files}  # official ones have empty masks
    files["Tiles-master/MT_Crack/Imgs/exp1_num_700.jpg"] = encoded(BLACK + 9, "JPEG")
    files["Tiles-master/MT_Crack/Imgs/exp1_num_700.png"] = encoded([[0, 127, 128, 255]])
    category = replace(BY_NAME["magnetic_tile"], counts=counted(5, 3, {"crack": 1}))
    lay_out(write_archive(tmp_path / "tiles.zip", files), tmp_path / "data", [category])
    folder = tmp_path / "data" / "magnetic_tile"
    good = {path.name for path in (folder / "test/good").iterdir()}
    assert good == {"exp1_num_7.jpg", "exp1_num_157.jpg", "exp0_num_3000.jpg"}  # first and sixth of six tiles
    assert (folder / "test/crack/exp1_num_700.jpg").read_bytes() == encoded(BLACK + 9, "JPEG")
    assert pixels(folder / "ground_truth/crack/exp1_num_700_mask.png").tolist() == [[0, 0, 255, 255]]
    with open(folder / "tiles.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["file", "tile"]
    assert [name for name, _ in rows[1:]] == sorted(name for name, _ in rows[1:])
    numbers = {int(name.split("_")[-1].removesuffix(".jpg")): int(tile) for name, tile in rows[1:]}
    assert numbers == {7: 0, 157: 0, 308: 1, 458: 1, 609: 2, 700: 2, 1000: 3, 2000: 4, 3000: 5}


def test_every_third_board_and_its_defective_twin_are_test_images(tmp_path):
    files = {}
    for number in range(6):
        place = "DeepPCB-master/PCBData/group13000/"
        files[f"{place}13000/1300000{number}_temp.jpg"] = encoded(np.full((16, 16, 3), 10 * number), "JPEG")
        files[f"{place}13000/1300000{number}_test.jpg"] = encoded(np.full((16, 16, 3), 10 * number + 5), "JPEG")
        files[f"{place}13000_not/1300000{number}.txt"] = b"3 4 6 8 2\n12 12 14 14 1\n"
    files["DeepPCB-master/PCBData/group00041/00041/00041000_temp.jpg"] = b"another group"
    category = replace(BY_NAME["pcb"], counts=counted(4, 2, {"defect": 2}), size=16)
    lay_out(write_archive(tmp_path / "boards.zip", files), tmp_path, [category])
    folder = tmp_path / "pcb"
    assert {path.name[-5] for path in (folder / "train/good").iterdir()} == set("1245")
    assert {path.name[-5] for path in (folder / "test/good").iterdir()} == set("03")
    twin = Image.open(folder / "test/defect/13000003.jpg")
    assert (twin.size, twin.mode) == ((8, 8), "L")
    assert abs(int(np.asarray(twin).mean()) - 35) < 2
    expected = np.zeros((8, 8))
    expected[2:4, 1:3] = expected[6, 6] = 255
    assert (pixels(folder / "ground_truth/defect/13000003_mask.png") == expected).all()
    assert not (folder / "unsplit").exists()


def test_hazelnuts_are_the_same_from_both_archives(tmp_path):
    good, colour, mask = encoded(BLACK, "JPEG"), encoded(BLACK + 9, "JPEG"), encoded(DOT)
    toy = {"hazelnut_toy/good/00.jpg": good, "hazelnut_toy/good/04.jpg": good, "hazelnut_toy/colour/00.jpg": colour}
    toy |= {"hazelnut_toy/mask/colour/00.png": mask, "hazelnut_toy/crack/00.jpg": colour}
    place = "extensions-2.0.0/tests/assets/anomaly_hazelnut"
    split = {
        f"{place}/train/good/00.jpg": good,
        f"{place}/test/good/04.jpg": good,
        f"{place}/test/colour/00.jpg": colour,
    }
    split[f"{place}/ground_truth/colour/00.png"] = mask
    category = replace(BY_NAME["hazelnut"], counts=counted(1, 1, {"colour": 1}))
    for name, files in (("toy", toy), ("split", split)):
        lay_out(write_archive(tmp_path / f"{name}.zip", files), tmp_path / name, [category])
        assert files_below(tmp_path / name / "hazelnut") == {
            "train/good/00.jpg",
            "test/good/04.jpg",
            "test/colour/00.jpg",
            "ground_truth/colour/00_mask.png",
        }


def test_the_command_lays_out_what_has_the_official_number_of_images(tmp_path, capsys):
    tile, mask, files, frame = encoded(BLACK, "JPEG"), encoded(DOT), {}, 0
    for number in range(155):
        frame += 1000
        size = 6 + (number == 1 or (number % 5 == 0 and number < 105))
        files |= {f"r/MT_Free/Imgs/exp{place}_num_{frame + place}.jpg": tile for place in range(size)}
    for kind, count in (("Blowhole", 115), ("Break", 85), ("Crack", 57), ("Fray", 32), ("Uneven", 103)):
        for place in range(count):
            files |= {f"r/MT_{kind}/Imgs/exp1_num_{place}.jpg": tile, f"r/MT_{kind}/Imgs/exp1_num_{place}.png": mask}
    archive = write_archive(tmp_path / "tiles.zip", files)
    main(["--archive", str(archive), "--output_dir", str(tmp_path / "data")])
    printed = capsys.readouterr()
    assert "magnetic_tile: 745 images to train on, 207 good and 392 defective ones to test on" in printed.out
    assert "100%" in printed.err
    kept = tmp_path / "data" / "magnetic_tile" / "tiles.csv"
    kept.write_text("mine")
    main(["--archive", str(archive), "--output_dir", str(tmp_path / "data")])
    assert "there already, left as it is" in capsys.readouterr().out
    assert kept.read_text() == "mine"


def without(name):
    files = screws()
    del files[f"mvtec_anomaly_detection/screw/{name}"]
    return files


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (without("train/good/001.png"), "1 images for screw/train/good where the data set has 2"),
        (without("ground_truth/scratch_head/000_mask.png"), "0 images for screw/ground_truth/scratch_head"),
        (screws() | screws("again/"), "twice"),
        (screws() | {"screw/train/good/003.png": encoded(np.zeros((7, 8)))}, "is 8×7 pixels, not 8×8"),
        (screws() | {"screw/train/good/003.png": b"no image"}, "is not an image"),
        ({"readme.md": b"something else"}, "holds none of these: screw, bottle"),
    ],
    ids=["an image lacks", "a mask lacks", "twice", "another size", "no image", "another archive"],
)
def test_what_is_not_the_official_archive_leaves_nothing(tmp_path, files, words):
    archive = write_archive(tmp_path / "mvtec.tar.xz", files)
    with refused(ValueError, "mvtec.tar.xz", words):
        lay_out(archive, tmp_path / "data", [SCREW, BOTTLE])
    assert [path.name for path in tmp_path.iterdir()] == ["mvtec.tar.xz"]


def test_all_categories_of_an_archive_appear_or_none(tmp_path):
    files = screws() | {"bottle/train/good/000.png": encoded(np.zeros((9, 9, 3)))}
    (tmp_path / "data").mkdir()
    with refused(ValueError, "bottle/test/good"):
        lay_out(write_archive(tmp_path / "mvtec.tar", files), tmp_path / "data", [SCREW, BOTTLE])
    assert list((tmp_path / "data").iterdir()) == []


def test_the_command_ends_with_one_sentence(tmp_path, capsys):
    with refused(SystemExit, "error: ", "missing.zip is no file"):
        main(["--archive", str(tmp_path / "missing.zip"), "--output_dir", str(tmp_path / "data")])
    archive = tmp_path / "page.zip"
    archive.write_bytes(b"<html>log in first</html>")
    with refused(SystemExit, "error: ", "page.zip is damaged, cut short or no zip or tar archive"):
        main(["--archive", str(archive), "--output_dir", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "magnetic_tile" in capsys.readouterr().out
