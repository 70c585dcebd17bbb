"""The data sets of docs/results.md: which files of their official archives make up a category, its sizes and its split.

A category knows the files it is made of by their names (`pattern`), writes one at a time into its folder (`place`), and
makes the split when all are there (`finish`). The outcome is in MVTec-AD layout: train/good, test/good, test/DEFECT,
ground_truth/DEFECT with masks of 0 and 255.
"""

import csv
import re
import shutil
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from benchmarks.data_set_files import (
    boxes_mask,
    decode,
    marked,
    save_image,
    save_mask,
    shrunk_mask,
    square_image,
    write_image,
    write_new,
)

JPEG_QUALITY, BOARD_JPEG_QUALITY = 95, 90

FRAME_GAP = 150
"""Images of magnetic tiles whose frames are no further apart show the same tile."""

TILES_TABLE = "tiles.csv"
NUMBER_OF_FRAME = re.compile(r"num_(\d+)")
TEST_TILE, TEST_BOARD = 5, 3
"""Every fifth tile and every third board, from the first, is a test image."""

TEST_HAZELNUTS = frozenset({"04", "05", "13", "23", "25", "28"})

UNSPLIT = "unsplit"
"""Where good images wait for the split, in the category's folder."""


@dataclass(frozen=True)
class Category:
    """A category of parts.

    Args:
        name (`str`): of its folder.
        counts (`dict`): how many images its folders hold, such as {"train/good": 320, "test/scratch_head": 24}.
    """

    name: str
    counts: dict

    def place(self, match, content, folder):
        """Write what the file of a name that `pattern` has matched becomes.

        Args:
            match (`re.Match`): of the file's name.
            content (`bytes`): of the file.
            folder (`Path`): of the category.

        Raises:
            ValueError: if it cannot be read, has another size, or is there already.
        """
        raise NotImplementedError

    def finish(self, folder):
        """Make the split, when every file is placed."""

    def check(self, folder):
        """Refuse a folder that does not hold as many images and masks as the results were measured on."""
        expected = dict(self.counts)
        for place, count in self.counts.items():
            split, kind = place.split("/")
            if split == "test" and kind != "good":
                expected[f"ground_truth/{kind}"] = count
        for place, count in expected.items():
            found = sum(1 for _ in (folder / place).glob("*"))
            if found != count:
                raise ValueError(f"it holds {found} images for {self.name}/{place} where the data set has {count}.")


@dataclass(frozen=True)
class MVTecCategory(Category):
    """A category of MVTec-AD, in its own split.

    Args:
        source_size (`int`): of its square images, pixels.
        mode (`str`): "L" or "RGB".
        suffix (`str`): of the images that are written, ".png" or ".jpg".
        size (`int`): of those, pixels.
    """

    source_size: int
    mode: str
    suffix: str
    size: int = 512

    @cached_property
    def pattern(self):
        """Groups: split, kind, number; or the name of a text about its licence."""
        image = r"(train|test|ground_truth)/(\w+)/(\d+)(?:_mask)?\.png"
        return re.compile(rf"(?:.*/)?{self.name}/(?:{image}|(license\.txt|readme\.txt))")

    def place(self, match, content, folder):
        split, kind, number, text = match.groups()
        if text:
            write_new(folder / text, content)
            return
        image = square_image(content, match[0], self.source_size)
        if split == "ground_truth":
            save_mask(folder / split / kind / f"{number}_mask.png", shrunk_mask(marked(image), self.size))
        else:
            image = image.convert(self.mode).resize((self.size, self.size), Image.Resampling.LANCZOS)
            save_image(folder / split / kind / f"{number}{self.suffix}", image, JPEG_QUALITY)


@dataclass(frozen=True)
class MagneticTiles(Category):
    """The magnetic tiles of Huang, Qiu and Yuan, as they are, split by the physical tile."""

    pattern = re.compile(
        r"(?:.*/)?MT_(?:(Free)/Imgs/(\w+)\.jpg|(Blowhole|Break|Crack|Fray|Uneven)/Imgs/(\w+)\.(jpg|png))"
    )

    def place(self, match, content, folder):
        free, good_stem, kind, stem, suffix = match.groups()
        if free:
            write_image(folder / UNSPLIT / f"{good_stem}.jpg", content, match[0])
        elif suffix == "jpg":
            write_image(folder / "test" / kind.lower() / f"{stem}.jpg", content, match[0])
        else:
            mask = marked(decode(content, match[0]))
            save_mask(folder / "ground_truth" / kind.lower() / f"{stem}_mask.png", mask)

    def finish(self, folder):
        tiles = number_tiles((folder / UNSPLIT).glob("*"))
        move(folder, {file: "train/good" if tile % TEST_TILE else "test/good" for file, tile in tiles.items()})
        tiles = number_tiles([*folder.glob("train/*/*"), *folder.glob("test/*/*")])
        rows = sorted((file.relative_to(folder).as_posix(), tile) for file, tile in tiles.items())
        with open(folder / TILES_TABLE, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("file", "tile"), *rows])


def number_tiles(files):
    """Number the physical tile of each image from 0 in the order of frames.

    Args:
        files (`Iterable[Path]`): such as exp3_num_304319.jpg: exposure 3, frame 304319. Each tile was photographed
            under up to six exposures, one frame after the other.

    Returns:
        `dict[Path, int]`: number of the tile.

    Raises:
        ValueError: if a name has no number of a frame.
    """
    frames = []
    for file in files:
        number = NUMBER_OF_FRAME.search(file.name)
        if number is None:
            raise ValueError(f"its image {file.name} has no number of a frame in its name.")
        frames.append((int(number[1]), file))
    tiles, tile, last = {}, 0, None
    for frame, file in sorted(frames):
        tile += last is not None and frame - last > FRAME_GAP
        tiles[file], last = tile, frame
    return tiles


@dataclass(frozen=True)
class Boards(Category):
    """A group of DeepPCB: its defect-free templates are the good images, boxes around defects are drawn as masks.

    Args:
        size (`int`): of its square images, pixels, twice that of the images that are written.
    """

    size: int = 640

    pattern = re.compile(r"(?:.*/)?group13000/(?:13000/(\d+)_(temp|test)\.jpg|13000_not/(\d+)\.txt)")

    def place(self, match, content, folder):
        number, kind, number_of_boxes = match.groups()
        if number is None:
            mask = boxes_mask(content, match[0], self.size)
            save_mask(folder / UNSPLIT / f"{number_of_boxes}_mask.png", shrunk_mask(mask, self.size // 2))
            return
        image = square_image(content, match[0], self.size).convert("L")
        image = image.resize((self.size // 2, self.size // 2), Image.Resampling.LANCZOS)
        save_image(folder / UNSPLIT / kind / f"{number}.jpg", image, BOARD_JPEG_QUALITY)

    def finish(self, folder):
        places = {}
        for place, good in enumerate(sorted((folder / UNSPLIT / "temp").glob("*"))):
            places[good] = "train/good" if place % TEST_BOARD else "test/good"
            if place % TEST_BOARD == 0:
                places[folder / UNSPLIT / "test" / good.name] = "test/defect"
                places[folder / UNSPLIT / f"{good.stem}_mask.png"] = "ground_truth/defect"
        move(folder, places)


@dataclass(frozen=True)
class Hazelnuts(Category):
    """The hazelnut toy data of anomalib, as they are, in the split that OpenVINO's training extensions use."""

    pattern = re.compile(
        r"(?:.*/)?(?:hazelnut_toy/|anomaly_hazelnut/(?:train/|test/)?)"
        r"(?:(good|colour)/(\d+)\.jpg|(?:mask|ground_truth)/colour/(\d+)\.(?:png|jpg))"
    )

    def place(self, match, content, folder):
        kind, number, number_of_mask = match.groups()
        if number_of_mask:
            mask = marked(decode(content, match[0]))
            save_mask(folder / "ground_truth" / "colour" / f"{number_of_mask}_mask.png", mask)
            return
        split = "train" if kind == "good" and number not in TEST_HAZELNUTS else "test"
        write_image(folder / split / kind / f"{number}.jpg", content, match[0])


def move(folder, places):
    """Move files of the unsplit folder into the folders that `places` names, and delete what is left of it.

    Raises:
        ValueError: if one is not there.
    """
    for file, place in places.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        try:
            file.rename(folder / place / file.name)
        except FileNotFoundError as error:
            raise ValueError(f"it lacks {file.relative_to(folder / UNSPLIT)} of {folder.name}.") from error
    shutil.rmtree(folder / UNSPLIT, ignore_errors=True)


SCREW_DEFECTS = {"manipulated_front": 24, "scratch_head": 24, "scratch_neck": 25, "thread_side": 23, "thread_top": 23}
BOTTLE_DEFECTS = {"broken_large": 20, "broken_small": 22, "contamination": 21}
PILL_DEFECTS = {
    "color": 25,
    "combined": 17,
    "contamination": 21,
    "crack": 26,
    "faulty_imprint": 19,
    "pill_type": 9,
    "scratch": 24,
}
TILE_DEFECTS = {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}


def counted(train, test, defects):
    """How many images each folder of a category holds, `dict[str, int]`."""
    return {"train/good": train, "test/good": test, **{f"test/{kind}": count for kind, count in defects.items()}}


CATEGORIES = (
    MVTecCategory("screw", counted(320, 41, SCREW_DEFECTS), 1024, "L", ".png"),
    MVTecCategory("bottle", counted(209, 20, BOTTLE_DEFECTS), 900, "RGB", ".jpg"),
    MVTecCategory("pill", counted(267, 26, PILL_DEFECTS), 800, "RGB", ".jpg"),
    MagneticTiles("magnetic_tile", counted(745, 207, TILE_DEFECTS)),
    Boards("pcb", counted(144, 72, {"defect": 72})),
    Hazelnuts("hazelnut", counted(28, 6, {"colour": 17})),
)
