"""Labelled test images of a data set, in the layouts of `layouts.py`: which kind of defect, and which of its pixels.

Everything is looked at before anything is scored: what cannot be read, fits no mask or could belong to two images is
said at once, and what therefore cannot be measured is left out of that figure alone.
"""

import logging
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from rendering.words import count_of, one_line
from training.data.defect_masks import SIDEWAYS, mask_size, orientation_of, read_mask_file, turned_like, upright_size
from training.data.image_folders import find_images, shown_path
from training.data.image_reading import read_image
from training.data.layouts import (
    GOOD_NAMES,
    IMAGE_FOLDER,
    MASK_NAMES,
    MASK_SUFFIXES,
    TEST_NAMES,
    is_named,
    masks_beside,
    normalised,
    subfolders,
    visa_folder,
)

GOOD = "good"
DEFECT = "defect"
"""What is said of a defective image of a data set that tells no kinds of defects apart."""

MOSTLY = 0.5
"""A mask that marks more than this share of its image may have its colours the wrong way round."""

SHOWN = 3
LOOKED_AT_ONCE = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledImage:
    """A test image.

    Args:
        path (`Path`): its file.
        defect (`str`): kind of defect, `GOOD` for none.
        mask_paths (`tuple[Path]`): files whose marked pixels together are the defect; none for a good image, or where
            nobody has marked the defect.
        turned (`int`): EXIF orientation by which the masks have to be turned, for they were drawn on the raw pixels.
    """

    path: Path
    defect: str
    mask_paths: tuple = ()
    turned: int = 1

    @property
    def has_mask(self):
        """Whether it is known which of its pixels are defective."""
        return self.defect == GOOD or bool(self.mask_paths)

    def read_mask(self, size):
        """The defect's pixels, bool, (height, width) = `size`; all False where nothing is marked.

        Raises:
            ValueError: if a mask cannot be read, or its size is not the image's.
        """
        marked = np.zeros(size, bool)
        for path in self.mask_paths:
            mask = read_mask_file(path)
            if self.turned != 1:
                mask = turned_like(mask, self.turned)
            if mask.shape != tuple(size):
                raise ValueError(f"{one_line(path.name)} is {mask.shape[::-1]} pixels, but its image {size[::-1]}.")
            marked |= mask
        return marked


def find_labelled_images(category):
    """The test images of a category, `list[LabelledImage]`, sorted by kind and path; nothing is opened.

    Raises:
        ValueError: if there are none in a layout that is understood, or two images could own one mask.
    """
    category = Path(category)
    visa = visa_folder(category)
    if visa is not None:
        classes = {folder.name: folder for folder in subfolders(_named(visa, IMAGE_FOLDER))}
        return _labelled(classes, _named(visa, MASK_NAMES))
    test = _named(category, TEST_NAMES) or category
    files = find_images(test)
    masks = masks_beside(files)
    if masks and len(masks) == len(files) - len(set(masks.values())):
        return [
            LabelledImage(image, DEFECT if read_mask_file(mask).any() else GOOD, (mask,))
            for image, mask in sorted(masks.items())
        ]
    classes = {folder.name: folder for folder in subfolders(test) if not is_named(folder, MASK_NAMES)}
    if test is category and not any(is_named(name, GOOD_NAMES) for name in classes):
        raise ValueError(
            f"{shown_path(category)} has no folder test with a folder of good images and one for each kind of defect."
        )
    if masks:
        without = next(path for path in files if path not in masks and path not in set(masks.values()))
        raise ValueError(
            f"{shown_path(test)} holds masks beside {len(masks)} images, and none beside {one_line(without.name)}; "
            "put masks into a folder ground_truth, or one beside every image."
        )
    loose = [path for path in files if path.parent == test]
    if loose:
        logger.warning(
            "left out: %s directly in %s, of which nothing says what they show (%s)",
            count_of(len(loose), "image"),
            shown_path(test),
            one_line(loose[0].name),
        )
    around = category.parent if test is category else category
    return _labelled(classes, _named(category, MASK_NAMES) or _named(test, MASK_NAMES) or _named(around, MASK_NAMES))


def check_labelled_images(labelled):
    """Open every image and mask, and leave out what cannot be used; what that is, is logged as a warning with a count.

    Args:
        labelled (`list[LabelledImage]`): as they were found.

    Returns:
        `list[LabelledImage]`: those whose image can be read. One whose mask cannot be used, or is empty, has none.

    Raises:
        ValueError: if no image can be read.
    """
    notes = defaultdict(list)
    with ThreadPoolExecutor(LOOKED_AT_ONCE) as pool:
        looked_at = tqdm(pool.map(_looked_at, labelled), total=len(labelled), desc="checking images", unit="image")
        usable = []
        for item, found in looked_at:
            if item is not None:
                usable.append(item)
            for note, example in found:
                notes[note].append(example)
    for note, examples in notes.items():
        listed = "; ".join(examples[:SHOWN]) + ("; …" if len(examples) > SHOWN else "")
        logger.warning("%s %s: %s", count_of(len(examples), "image"), note, listed)
    if not usable:
        raise ValueError("none of the test images can be read.")
    return usable


UNREADABLE = "cannot be read and left out"
UNREADABLE_MASK = "with a mask that cannot be read or used, left out of the pixels' figures"
EMPTY_MASK = "of a defect with an empty mask, left out of the pixels' figures"
NO_MASK = "of a defect without a mask, left out of the pixels' figures"
MOSTLY_MARKED = "with a mask that marks more than half of it; are its colours the wrong way round?"
TURNED = "with a mask drawn before the image was turned by its EXIF orientation, turned as well"
PERHAPS_TURNED = "turned by their EXIF orientation, which their masks' size does not tell; masks are taken as upright"


def _looked_at(item):
    """The image to be used, or None, and what is to be said of it, `list[tuple[str, str]]` of note and example."""
    name = f"{one_line(item.defect)}/{one_line(item.path.name)}"
    try:
        image = read_image(item.path)
        size, orientation = upright_size(image), orientation_of(image)
    except ValueError as error:
        return None, [(UNREADABLE, f"{name} ({error})")]
    if not item.mask_paths:
        return item, [(NO_MASK, name)] if item.defect != GOOD else []
    notes = []
    try:
        sizes = {mask_size(path) for path in item.mask_paths}
        if sizes == {size[::-1]} and size[0] != size[1] and orientation in SIDEWAYS:
            item = replace(item, turned=orientation)
            notes.append((TURNED, name))
        elif orientation != 1 and (size[0] == size[1] or orientation not in SIDEWAYS):
            notes.append((PERHAPS_TURNED, name))
        marked = item.read_mask(size)
    except ValueError as error:
        return replace(item, mask_paths=()), [(UNREADABLE_MASK, f"{name} ({error})")]
    if item.defect != GOOD and not marked.any():
        return replace(item, mask_paths=()), [*notes, (EMPTY_MASK, name)]
    if marked.mean() > MOSTLY:
        notes.append((MOSTLY_MARKED, name))
    return item, notes


def _named(folder, names):
    """The subfolder of one of these names, or None."""
    return next((each for each in subfolders(folder) if is_named(each, names)), None)


def _labelled(classes, masks):
    """Images of the classes, `dict` of name to folder, with their masks in a folder `masks`, perhaps None."""
    labelled = []
    for name, folder in sorted(classes.items(), key=lambda each: (not is_named(each[0], GOOD_NAMES), each[0])):
        is_good = is_named(name, GOOD_NAMES)
        try:
            files = find_images(folder)
        except ValueError as error:
            logger.warning("left out: %s", error)
            continue
        found = {} if is_good or masks is None else _masks_of(files, folder, masks, name)
        labelled += [LabelledImage(path, GOOD if is_good else name, found.get(path, ())) for path in files]
    if not labelled:
        raise ValueError("there are no test images in a layout that is understood.")
    return labelled


def _masks_of(files, folder, masks, name):
    """The mask files of each image of a class, `dict[Path, tuple[Path]]`."""
    same = next((each for each in subfolders(masks) if normalised(each.name) == normalised(name)), None)
    if same is None and subfolders(masks):
        return {}
    place, by_stem = same or masks, defaultdict(list)
    stems = Counter(path.stem.lower() for path in files)
    for mask in _found(place):
        parent = mask.relative_to(place).parent.name.lower()  # LOCO has a folder of masks for each image
        by_stem[parent if parent in stems else _without_suffix(mask.stem).lower()].append(mask)
    found = {}
    for path in files:
        own = by_stem.get(path.stem.lower(), [])
        if own and stems[path.stem.lower()] > 1:
            own = _one_of_twins(path, files, own, place, folder)
        flat = [mask for mask in own if mask.parent == place]
        if len(flat) > 1:
            raise ValueError(
                f"{one_line(path.name)} of {one_line(name)} has {len(flat)} masks, "
                f"{' and '.join(one_line(mask.name) for mask in flat[:2])}; keep one."
            )
        if own:
            found[path] = tuple(sorted(own))
    return found


def _one_of_twins(path, files, own, masks, folder):
    """The masks of one of several images of a stem: those in a folder named as the image's own, or none is certain."""
    twins = [each for each in files if each.stem.lower() == path.stem.lower()]
    relative = path.relative_to(folder).parent
    in_place = [mask for mask in own if mask.relative_to(masks).parent == relative]
    alone = [each for each in twins if each.relative_to(folder).parent == relative] == [path]
    if in_place and alone:
        return in_place
    names = " and ".join(one_line(each.relative_to(folder).as_posix()) for each in twins[:2])
    raise ValueError(
        f"{names} in {shown_path(folder)} could both own the mask {one_line(own[0].name)}; give the files other names."
    )


def _found(folder):
    try:
        return find_images(folder)
    except ValueError:
        return []


def _without_suffix(stem):
    """The name of a mask's file without what says that it is one."""
    lower = stem.lower()
    suffix = next((each for each in MASK_SUFFIXES if lower.endswith(each)), "")
    return stem[: len(stem) - len(suffix)]
