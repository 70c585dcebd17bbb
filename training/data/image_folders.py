"""The image files of a folder tree, and what of it nobody meant: hidden folders, system folders, loops of links."""

import hashlib
import logging
import os
import re
from collections import Counter
from pathlib import Path

from rendering.words import count_of, escaped, one_line
from training.data.image_reading import IMAGE_SUFFIXES, is_image_name

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
)
"""Folders that programs keep for themselves, in small letters; so are all whose name begins with a dot."""

GROUND_TRUTH = re.compile(r"ground[\s_-]*truths?")

SHOWN_KINDS = 4

MAX_NAME = 200
"""Bytes of a file's name that leave room for an ending."""

logger = logging.getLogger(__name__)


def walk_images(folder, left_out=None, with_masks=True):
    """Yield every image file below `folder`, in no order, without holding more of them than one.

    Links to folders are followed after all real folders, and only to what has not been seen yet. Hidden files and
    folders and `SYSTEM_FOLDERS` are left out; at the end it is said how many images that were.

    Args:
        folder (`str` or `Path`): a folder tree.
        left_out (`str` or `Path`, *optional*): a folder below it that is not looked into.
        with_masks (`bool`): without it folders named ground_truth are left out, and it is said how many images that
            were.

    Returns:
        `Iterator[tuple[str, os.DirEntry]]`: path within the folder, and what the system says of the file.

    Raises:
        ValueError: if the folder does not exist, is the one that is left out, or holds no image file.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{shown_path(folder)} is not a folder.")
    if left_out is not None and os.path.realpath(folder) == os.path.realpath(left_out):
        raise ValueError(f"{shown_path(folder)} holds the images, and results would lie among them; choose another.")
    walk = _Walk(folder, left_out, with_masks)
    is_empty = True
    for found in walk:
        is_empty = False
        yield found
    walk.report()
    if is_empty:
        raise ValueError(f"{shown_path(folder)} holds no images ({', '.join(IMAGE_SUFFIXES)}){walk.other_kinds()}.")


def find_images(folder, left_out=None, with_masks=True):
    """Every image file below `folder`, sorted by path; arguments and errors are those of `walk_images`."""
    return sorted(Path(folder, name) for name, _ in walk_images(folder, left_out, with_masks))


def is_hidden(name):
    """Whether a file or folder of this name is a program's own business."""
    return (name.startswith(".") and name.strip(".") != "") or name.lower() in SYSTEM_FOLDERS


def is_ground_truth(name):
    """Whether a folder of this name holds the masks of a data set."""
    return GROUND_TRUTH.fullmatch(name.strip().lower()) is not None


def shown_path(path):
    """A path as part of a message, on one line, whatever bytes it is made of."""
    return escaped(path)


def short_enough(path, longest=MAX_NAME):
    """A relative path (`str`) whose last name leaves room for an ending; what is cut off is replaced by a hash."""
    folder, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) <= longest:
        return path
    return os.path.join(folder, f"{os.fsdecode(encoded[:100])}-{hashlib.sha256(encoded).hexdigest()}")


class _Walk:
    """One walk through a folder tree; it counts what it leaves out."""

    def __init__(self, folder, left_out, with_masks):
        self.with_masks, self.num_masks = with_masks, 0
        self.folder = os.path.realpath(folder)
        self.left_out = left_out and os.path.realpath(left_out)
        self.seen, self.links, self.locked, self.hidden, self.others = set(), [], [], Counter(), Counter()
        self.given = folder

    def __iter__(self):
        yield from self._tree("", self.given)
        while self.links:
            prefix, path = min(self.links)
            self.links.remove((prefix, path))
            if not self._is_loop(path):
                yield from self._tree(prefix, path)

    def _tree(self, prefix, path):
        open_folders = []
        self._open(open_folders, prefix, path)
        while open_folders:
            prefix, entries = open_folders[-1]
            entry = next(entries, None)
            if entry is None:
                open_folders.pop()
            elif _is_folder(entry):
                self._enter(open_folders, prefix, entry)
            elif not is_image_name(entry.name):
                self.others[os.path.splitext(entry.name)[1].lower()] += 1
            elif entry.name.startswith("."):
                self.hidden["."] += 1
            elif entry.is_file():
                yield prefix + entry.name, entry

    def _enter(self, open_folders, prefix, entry):
        below = f"{prefix}{entry.name}{os.sep}"
        if is_hidden(entry.name):
            if not entry.is_symlink():
                self.hidden[entry.name] += _count_images(entry.path)
        elif not self.with_masks and is_ground_truth(entry.name):
            self.num_masks += _count_images(entry.path)
        elif entry.is_symlink():
            self.links.append((below, entry.path))
        else:
            self._open(open_folders, below, entry.path)

    def _open(self, open_folders, prefix, path):
        if os.path.realpath(path) == self.left_out:
            return
        try:
            state = os.stat(path)
            if (state.st_dev, state.st_ino) not in self.seen:
                open_folders.append((prefix, os.scandir(path)))
                self.seen.add((state.st_dev, state.st_ino))
        except PermissionError:
            self.locked.append(path)

    def _is_loop(self, path):
        """Whether a link leads to a folder that the walked one lies in."""
        target = os.path.realpath(path)
        return self.folder == target or self.folder.startswith(target.rstrip(os.sep) + os.sep)

    def report(self):
        count = sum(self.hidden.values())
        if count:
            folders = ", ".join(one_line(name) for name in sorted(self.hidden) if name != "." and self.hidden[name])
            where = f"in folders that programs keep for themselves ({folders})" if folders else "that are hidden files"
            logger.info("left out: %s %s", count_of(count, "image"), where)
        if self.num_masks:
            logger.info("left out: %s in folders of ground truth", count_of(self.num_masks, "mask"))
        if self.locked:
            folders = count_of(len(self.locked), "folder")
            logger.warning("left out: %s that may not be read, %s the first", folders, shown_path(self.locked[0]))

    def other_kinds(self):
        """What else there was, for a folder without images."""
        kinds = [f"{count} {one_line(kind) or 'without an ending'}" for kind, count in self.others.most_common()]
        said = f"; it holds other files: {', '.join(kinds[:SHOWN_KINDS])}" if kinds else ""
        return f"{said}; {shown_path(self.locked[0])} may not be read" if self.locked else said


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _count_images(folder):
    return sum(is_image_name(name) for _, _, files in os.walk(folder) for name in files)
