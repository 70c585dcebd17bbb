"""Which images show one and the same part: said by the user, or found because the images are nearly the same.

Images of one part stay on one side of every split. `--groups` is a CSV file (file, group) or a regular expression whose
first group is the part's id in the file's name; a data set of the Hub may have a column for it.
"""

import csv
import logging
import re
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

from rendering.words import count_of, one_line
from training.data.near_identical import find_near_identical
from training.data.splits import split_key

NO_GROUPS = "none"
"""What `--groups` says where every image shows a part of its own."""

MIN_PARTS = 8
"""So many parts at least: four to train on, four to hold out."""

HELP = (
    "which images show the same part, so that they stay on one side of every split: a CSV file (file, group; files by "
    "their path from any folder above them), or a regular expression whose first group is the part's id in the file's "
    "name; none: every image shows a part of its own. By default nearly identical images are found and kept together"
)

REMEDY = f"; say with --groups which belong together, or --groups {NO_GROUPS} if each shows a part of its own"

logger = logging.getLogger(__name__)


def find_groups(images, rule=None, name="", shows_progress=True, remedy=REMEDY):
    """The part that each image shows.

    Args:
        images (`list[Path]` or `list[HubImage]`): of one category.
        rule (`str`, *optional*): of `--groups`; without it nearly identical images are one part.
        name (`str`): what messages call the images.
        shows_progress (`bool`): whether to show a progress bar.
        remedy (`str`): what a refusal adds where the parts were found and the user may know better.

    Returns:
        `dict` or None: image to the part's name; None if every image shows a part of its own.

    Raises:
        ValueError: if the rule cannot be read or leaves an image out, or there are fewer than `MIN_PARTS`.
    """
    if rule == NO_GROUPS:
        return None
    group_of = group_rule(rule, images[0])
    if group_of is not None:
        groups = {image: group_of(_file_of(image), _row_group(image)) for image in images}
        missing = [image for image, group in groups.items() if not group]
        _refuse_missing(missing, f"--groups {rule}" if rule else "--group_column")
    elif rule is None:
        groups = _groups_of(images, find_near_identical(images, shows_progress))
    else:
        groups = _by_file(images, Path(rule))
    is_found = rule is None and group_of is None
    check_groups(groups, name, is_found, remedy if is_found else "")
    return groups


def group_rule(rule, image):
    """What tells the part of an image from its name and its row's group, `Callable`; None where nothing does.

    Args:
        rule (`str`, *optional*): of `--groups`.
        image (`Path` or `HubImage`): any one of the images.

    Raises:
        ValueError: if the rule is an expression that cannot be used.
    """
    if rule is None:
        return None if _row_group(image) is None else _group_of_row
    if rule == NO_GROUPS or Path(rule).is_file():
        return None
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise ValueError(f"--groups {rule} is no file and no regular expression ({error}).") from error
    if expression.groups < 1:
        raise ValueError(
            f"--groups {rule} is no file, and as a regular expression it has no group in parentheses for the part's id."
        )
    return partial(_group_in_name, expression)


def _file_of(image):
    return image.name if isinstance(image, Path) else image.file or image.name


def _row_group(image):
    return None if isinstance(image, Path) else image.group


def _group_of_row(name, group):
    return group


def _group_in_name(expression, name, group):
    match = expression.search(name)
    return match and match[1]


def check_groups(groups, name="", is_found=False, remedy=""):
    """Say how many parts there are where images share one.

    Args:
        groups (`dict`): image to part.
        name (`str`): what messages call the images.
        is_found (`bool`): whether they were found rather than given.
        remedy (`str`): what a refusal adds.

    Raises:
        ValueError: if there are fewer than `MIN_PARTS`.
    """
    count, parts = len(groups), len(set(groups.values()))
    before = f"{name}: " if name else ""
    if parts < MIN_PARTS:
        raise ValueError(
            f"{before}{count_of(count, 'image')} are of {count_of(parts, 'part')}; at least {MIN_PARTS} parts are "
            f"needed to train on some and calibrate on others{remedy}."
        )
    if parts < count:
        said = "near-identical ones" if is_found else "those of one part"
        logger.info(
            "%s%s are of %s%s: %s are kept on one side of every split",
            before,
            count_of(count, "image"),
            "about " if is_found else "",
            count_of(parts, "part"),
            said,
        )


def _groups_of(images, labels):
    """Groups from a label for each image: a part is named after the first of its images."""
    members = {}
    for image, label in sorted(zip(images, labels, strict=True), key=lambda pair: (split_key(pair[0]), pair[0])):
        members.setdefault(label, []).append(image)
    groups, taken = {}, Counter()
    for part in members.values():
        name = split_key(part[0])
        taken[name] += 1  # files of one name in folders of one name
        groups |= dict.fromkeys(part, name if taken[name] == 1 else f"{name} ({taken[name]})")
    return groups


def _by_file(images, path):
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, csv.Error) as error:
        raise ValueError(f"--groups {path} cannot be read ({error}).") from error
    if any(len(row) < 2 for row in rows):
        raise ValueError(f"--groups {path} has rows of one column; two are needed, the file and its group.")
    by_name = {}
    for file, group, *_ in rows:
        place = PurePosixPath(file.replace("\\", "/"))
        by_name.setdefault(place.name, []).append((place.parts, group.strip()))
    groups, missing = {}, []
    for image in images:
        place = image.absolute().as_posix() if isinstance(image, Path) else _file_of(image)
        found = _longest_match(PurePosixPath(place).parts, by_name)
        if len(found) > 1:
            both = " and ".join(sorted(found)[:2])
            raise ValueError(f"--groups {path} names {one_line(image.name)} in {len(found)} groups, {both}.")
        groups[image] = next(iter(found), "")
        if not groups[image]:
            missing.append(image)
    is_elsewhere = any(PurePosixPath(_file_of(image)).name in by_name for image in missing)
    hint = "; it names files of these names in other folders" if is_elsewhere else ""
    _refuse_missing(missing, f"--groups {path}", hint)
    return groups


def _longest_match(parts, by_name):
    """The groups of the rows that name an image by the most folders, `set[str]`.

    A row's whole path has to be the end of the image's; or, of a data set's image, whose own path may be known in part
    only, the other way round.
    """
    best, found = 0, set()
    for row, group in by_name.get(parts[-1], ()):
        length = min(len(row), len(parts))
        if row[-length:] != parts[-length:] or length < best:
            continue
        found = {group} if length > best else found | {group}
        best = length
    return found


def _refuse_missing(missing, option, hint=""):
    if missing:
        listed = ", ".join(one_line(image.name) for image in missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ValueError(f"{option} has no group for {count_of(len(missing), 'image')}: {listed}{hint}.")
