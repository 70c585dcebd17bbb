"""Setting images aside, whole parts at a time, so that no part has images on both sides of a split."""

import hashlib
import os
from pathlib import Path

MIN_HELD_OUT = 4
"""So many parts at least are held out, and so many are left."""


def split_key(image):
    """What a `Path` or a `HubImage` is known by in splits: folder and name of a file, the hash of other content."""
    return f"{image.parent.name}/{image.name}" if isinstance(image, Path) else image.key


def hold_out(images, fraction, seed, groups=None, candidates=None):
    """Split images into training and calibration images, part by part, by a hash of seed and the part's name.

    The split depends on names alone, not on the order or on the machine; that of images of a data set on what they
    hold. At least four parts are held out and at least four are left.

    Args:
        images (`list[Path]` or `list[HubImage]`): all of them.
        fraction (`float`): share of the parts that is held out.
        seed: draws the split.
        groups (`dict`, *optional*): the part that each image shows (`groups.find_groups`); by default one of its own.
        candidates (`list`, *optional*): the images that may be held out, whole parts; by default all.

    Returns:
        `tuple[list, list]`: training and calibration images, each sorted.
    """
    ranked = _ranked_parts(images, seed, groups)
    count = min(max(round(len(ranked) * fraction), MIN_HELD_OUT), len(ranked) - MIN_HELD_OUT)
    if candidates is not None:
        allowed = set(candidates)
        ranked.sort(key=lambda members: members[0] not in allowed)  # stable: the order within each kind stays
        count = min(count, sum(members[0] in allowed for members in ranked))
    return _sorted_images(ranked[count:]), _sorted_images(ranked[:count])


def part_of(image, groups):
    """The name of the part that an image shows."""
    return split_key(image) if groups is None else groups[image]


def count_parts(images, groups=None):
    """How many parts some images show."""
    return len({part_of(image, groups) for image in images}) if groups is not None else len(images)


def part_numbers(images, groups=None):
    """The part of each image as a number from 0, in the order in which parts come, `list[int]`."""
    if groups is None:
        return list(range(len(images)))
    numbers = {}
    return [numbers.setdefault(part_of(image, groups), len(numbers)) for image in images]


def _ranked_parts(images, seed, groups):
    """The images of each part, `list[list]`, in an order that seed and names alone determine."""
    if groups is None:  # images may share a key: each is a part all the same
        parts = [(split_key(image), [image]) for image in images]
    else:
        by_part = {}
        for image in images:
            by_part.setdefault(groups[image], []).append(image)
        parts = list(by_part.items())
    return [members for _, members in sorted(parts, key=lambda part: (_rank(part[0], seed), min(part[1])))]


def _rank(name, seed):
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).hexdigest()


def _sorted_images(parts):
    return sorted(image for members in parts for image in members)
