"""Good images as samples: categories of folders, and the data set that training and calibration read.

Where images are given as `Path`, those of a data set (`hub_images.HubImage`) are taken as well. Files are found by
`image_folders.py` and `layouts.py`, read by `image_reading.py`, set aside by `splits.py`.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.data import Dataset

from pipelines.category_bank import check_category_name
from pipelines.image_preprocessing import WHITE_LEVELS, preprocess, to_rgb, white_level_of
from rendering.words import count_of, escaped
from training.data.image_reading import open_image
from training.data.layouts import category_name, find_good_images

MAX_REPLACED = 10
"""So many images in a row may have become unreadable before a training ends."""

NUM_HEADS = 64
"""Of a data set, whose images may have to be fetched, so many are looked at before all are."""

DEEP_MODES = ("I", "I;16", "I;16B", "I;16L")
"""Pillow's modes of grey images of 16 bits."""

logger = logging.getLogger(__name__)


def in_batches(items, batch_size):
    """Yield consecutive slices of a list, the last one perhaps shorter.

    Raises:
        ValueError: if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]


def find_categories(folders, all_good=False, left_out=None):
    """The good images of each folder, `dict[str, list[Path]]`, named after the folders (`layouts.category_name`).

    Args:
        folders (`list[str]`): one for each category.
        all_good, left_out: as in `layouts.find_good_images`.

    Raises:
        ValueError: as `find_good_images`, or if two folders have the same name, or one that cannot be read.
    """
    names = [escaped(category_name(folder)) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"the folders are named {', '.join(names)}; categories are named after them and must differ.")
    for name in names if len(names) > 1 else []:
        check_category_name(name)
    return {name: find_good_images(folder, all_good, left_out) for name, folder in zip(names, folders, strict=True)}


def find_white_level(images):
    """The value of white in the 16-bit images of a training, one of `WHITE_LEVELS`.

    It is the smallest that none of them exceeds: cameras store 10, 12 or 14 bits in 16. Images of 8 bits say nothing.

    Args:
        images (`list[Path]` or `list[HubImage]`): readable ones. Of a data set only `NUM_HEADS` are looked at first.
    """
    if images and not isinstance(images[0], Path):
        step = max(1, len(images) // NUM_HEADS)
        images = images if any(map(_is_deep, images[::step])) else []
    with ThreadPoolExecutor() as pool:
        brightest = max(pool.map(_brightest, images), default=0)
    level = white_level_of(brightest) if brightest else WHITE_LEVELS[-1]
    if level != WHITE_LEVELS[-1]:
        logger.info(
            "16-bit images have values up to %d: white is %d (%d bits) for them, and for later ones",
            brightest,
            level,
            level.bit_length(),
        )
    return level


def _brightest(image):
    """The largest value of a 16-bit grey image; 0 for another, or one that cannot be read."""
    try:
        return int(to_rgb(open_image(image), image.name).max()) if _is_deep(image) else 0
    except ValueError:
        return 0


def _is_deep(image):
    """Whether an image is grey of 16 bits, by its head."""
    try:
        return open_image(image, decode=False).mode in DEEP_MODES
    except ValueError:
        return False


class GoodImages(Dataset):
    """Images as samples in [-1, 1], float32, (3, resolution, resolution), in the order of their files.

    Args:
        files (`list[Path]`): the images.
        resolution (`int`): they are squashed to this square.
        replaces_unreadable (`bool`): whether the next image stands in, with a warning, for one that cannot be read
            any more, unless `MAX_REPLACED` in a row cannot.
        white_level (`int`): the value of white in 16-bit images.
    """

    def __init__(self, files, resolution, replaces_unreadable=False, white_level=WHITE_LEVELS[-1]):
        self.files = files
        self.resolution = resolution
        self.replaces_unreadable = replaces_unreadable
        self.white_level = white_level
        self._warned = set()

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        for place in range(index, index + MAX_REPLACED):
            image = self.files[place % len(self.files)]
            try:
                rgb = to_rgb(open_image(image), image.name)
                return preprocess(rgb, self.resolution, self.white_level)[0][0]
            except ValueError as error:
                if not self.replaces_unreadable:
                    raise
                if place not in self._warned:
                    logger.warning("another image stands in: %s", error)
                self._warned.add(place)
                last = error
        raise ValueError(f"{count_of(MAX_REPLACED, 'image')} in a row cannot be read any more; of the last: {last}")
