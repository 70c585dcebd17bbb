"""Good pictures from a folder: finding them, reading them, setting some aside for calibration.

Where pictures are given as `Path`, those of a data set (`hub_pictures.HubPicture`) are taken as well.
"""

import hashlib
import io
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from pipelines.category_bank import check_category_name
from pipelines.image_preprocessing import MAX_PIXELS, preprocess, to_rgb

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000", "TGA")
"""Pillow's names of what is read. Others run programs (EPS) or are no pictures of a camera."""
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG")
MIN_IMAGES = 8

CHECKED_WHOLE = 2000
"""Of a larger folder only the head of each picture is checked: decoding all of it would take longer than training."""

MAX_REPLACED = 10
"""So many pictures in a row may have become unreadable before a training ends."""

logger = logging.getLogger(__name__)


def read_image(source, name=None, decode=True):
    """Open and decode one picture.

    Args:
        source (`str`, `Path` or a binary stream): where it is read from.
        name (`str`, *optional*): what errors call it; by default the file's name.
        decode (`bool`): without it only its head is read, and the picture that is returned is closed.

    Raises:
        ValueError: with the name, if it is no picture, moves, is truncated or has more than `MAX_PIXELS` pixels.
    """
    name = name or Path(source).name
    try:
        with Image.open(source, formats=FORMATS) as image:
            refusal = _refusal(image)
            if refusal is None and decode:
                image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture in a known format.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; crop it or scale it down first.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is damaged or cut short and cannot be read ({error}).") from error
    if refusal is not None:
        raise ValueError(f"{name} {refusal}")
    return image


def read_picture(picture):
    """Decode a `Path` or a `HubPicture`; errors are those of `read_image`."""
    return read_image(picture if isinstance(picture, Path) else io.BytesIO(picture.read()), picture.name)


def split_key(picture):
    """What a `Path` or a `HubPicture` is known by in splits: folder and name of a file, the hash of other content."""
    return f"{picture.parent.name}/{picture.name}" if isinstance(picture, Path) else picture.key


def _refusal(image):
    """What is wrong with a picture before it is decoded, or None."""
    if image.width * image.height > MAX_PIXELS:
        return (
            f"has {image.width}×{image.height} pixels; at most {MAX_PIXELS // 1_000_000} million are accepted: "
            "crop it or scale it down first."
        )
    if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
        return "is an animation; give one of its pictures."
    return None


def walk_images(folder, left_out=None):
    """Yield every picture file below `folder`, in no order, without holding more of them than one.

    Args:
        folder (`str` or `Path`): its links to other folders are not followed.
        left_out (`str` or `Path`, *optional*): a folder below it that is not looked into.

    Returns:
        `Iterator[tuple[str, os.DirEntry]]`: path within the folder, and what the system says of the file.

    Raises:
        ValueError: if the folder does not exist or holds no picture file.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder.")
    left_out = left_out and os.path.realpath(left_out)
    is_empty = True
    open_folders = [("", os.scandir(folder))]
    while open_folders:
        prefix, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
        elif entry.is_dir(follow_symlinks=False):
            if os.path.realpath(entry.path) != left_out:
                with suppress(PermissionError):
                    open_folders.append((f"{prefix}{entry.name}{os.sep}", os.scandir(entry.path)))
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file():
            is_empty = False
            yield prefix + entry.name, entry
    if is_empty:
        raise ValueError(f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}).")


def find_images(folder):
    """Every picture file below `folder`, sorted by path; errors are those of `walk_images`."""
    return sorted(Path(folder, name) for name, _ in walk_images(folder))


def find_good_images(folder):
    """The good pictures of a flat folder, or of `train/good` where the folder is a category in MVTec-AD layout.

    Those that cannot be read are left out with a warning; of more than `CHECKED_WHOLE` only the head is looked at.

    Raises:
        ValueError: if there are fewer than `MIN_IMAGES` that can be read.
    """
    folder = Path(folder)
    mvtec = folder / "train" / "good"
    candidates = find_images(mvtec if mvtec.is_dir() else folder)
    files = readable(candidates, decode=len(candidates) <= CHECKED_WHOLE)
    if len(files) < MIN_IMAGES:
        raise ValueError(f"{folder} holds {len(files)} readable pictures; at least {MIN_IMAGES} are needed.")
    return files


def readable(files, decode=True):
    """Those of some files that can be read, to their end or, without `decode`, as far as their head."""
    return [path for path in tqdm(files, desc="checking pictures", unit="image") if _is_readable(path, decode)]


def in_batches(items, batch_size):
    """Yield consecutive slices of a list, the last one perhaps shorter.

    Raises:
        ValueError: if `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]


def hold_out(files, fraction, seed):
    """Split files into training and calibration pictures, by a hash of seed and file name.

    The split depends on the names alone, not on the order or on the machine; that of pictures of a data set on what
    they hold. At least four pictures are held out and at least four are left.

    Returns:
        `tuple[list[Path], list[Path]]`: training and calibration files, each sorted.
    """

    def rank(picture):
        return hashlib.sha256(f"{seed}/{split_key(picture)}".encode()).hexdigest()

    ranked = sorted(files, key=rank)
    count = min(max(round(len(files) * fraction), 4), len(files) - 4)
    return sorted(ranked[count:]), sorted(ranked[:count])


def find_categories(folders):
    """The good pictures of each folder, `dict[str, list[Path]]`, named after the folders.

    Raises:
        ValueError: as `find_good_images`, or if two folders have the same name, or one that cannot be read.
    """
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"the folders are named {', '.join(names)}; categories are named after them and must differ.")
    for name in names if len(names) > 1 else []:
        check_category_name(name)
    return {name: find_good_images(folder) for name, folder in zip(names, folders, strict=True)}


class GoodImages(Dataset):
    """Pictures as samples in [-1, 1], float32, (3, resolution, resolution), in the order of their files.

    Args:
        files (`list[Path]`): the pictures.
        resolution (`int`): they are squashed to this square.
        replaces_unreadable (`bool`): whether the next picture stands in, with a warning, for one that cannot be read
            any more, unless `MAX_REPLACED` in a row cannot.
    """

    def __init__(self, files, resolution, replaces_unreadable=False):
        self.files = files
        self.resolution = resolution
        self.replaces_unreadable = replaces_unreadable
        self._warned = set()

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        for place in range(index, index + MAX_REPLACED):
            picture = self.files[place % len(self.files)]
            try:
                return preprocess(to_rgb(read_picture(picture), picture.name), self.resolution)[0][0]
            except ValueError as error:
                if not self.replaces_unreadable:
                    raise
                if place not in self._warned:
                    logger.warning("another picture stands in: %s", error)
                self._warned.add(place)
                last = error
        raise ValueError(f"{MAX_REPLACED} pictures in a row cannot be read any more; of the last: {last}")


def _is_readable(path, decode):
    """False, with a warning, for a file that cannot be read."""
    try:
        read_image(path, decode=decode)
        return True
    except ValueError as error:
        logger.warning("left out: %s", error)
        return False


@dataclass(frozen=True)
class LabelledImage:
    """A test picture: its file, its defect type ("good" for none) and the file of its mask (None for good ones)."""

    path: Path
    defect: str
    mask_path: Path | None

    def read_mask(self, size):
        """The defect's pixels, bool, (height, width) = `size`; all False for a good picture.

        Raises:
            ValueError: if the mask's size is not the picture's.
        """
        if self.mask_path is None:
            return np.zeros(size, bool)
        mask = np.asarray(read_image(self.mask_path).convert("L")) > 127
        if mask.shape != tuple(size):
            raise ValueError(f"{self.mask_path.name} is {mask.shape[::-1]} pixels, but its picture {size[::-1]}.")
        return mask


def find_labelled_images(category):
    """The test pictures of a category in MVTec-AD layout: test/good, test/DEFECT, ground_truth/DEFECT/NAME_mask.png.

    Raises:
        ValueError: if there is no test folder, or a defective picture has no mask.
    """
    category = Path(category)
    labelled = []
    for path in find_images(category / "test"):
        defect = path.relative_to(category / "test").parts[0]
        mask_path = None
        if defect != "good":
            mask_path = category / "ground_truth" / defect / f"{path.stem}_mask.png"
            if not mask_path.is_file():
                raise ValueError(f"test/{defect}/{path.name} has no mask ground_truth/{defect}/{mask_path.name}.")
        labelled.append(LabelledImage(path, defect, mask_path))
    return labelled
