"""The images that users give to be trained on: unpacked into a folder, checked one by one."""

import hashlib
import re
import shutil
from pathlib import Path, PurePosixPath

from training.data.image_reading import IMAGE_SUFFIXES, is_image_name
from training.data.layouts import MIN_IMAGES, good_files, says_what_it_shows

MAX_BYTES = 4 << 30
"""So much disk the images of one training may take."""

MAX_FOLDERS = 8
"""Of an image in a ZIP, so many folders above it are kept, for they say what it shows."""


def unpack_images(uploads, target, report=None):
    """Write the images of an upload to a folder of their own, under names of our own making.

    Args:
        uploads (`Folder`): what the user gave.
        target (`Path`): created; taken away again if this fails.
        report (`Callable[[int, int], None]`, *optional*): called with how many of how many were looked at.

    Returns:
        `list[str]`: what was left out, each a sentence with its reason.

    Raises:
        ValueError: if fewer than `MIN_IMAGES` can be used, they take more than `MAX_BYTES`, or folders or names say
            that not all of them show good parts.
    """
    target.mkdir(parents=True)
    try:
        left_out = _unpack(uploads, target, report)
        left_out += _keep_good_ones(target)
        count = len(uploads) - len(left_out)
        if count < MIN_IMAGES:
            reason = f" The first that cannot be used: {left_out[0]}" if left_out else ""
            raise ValueError(f"{count} of {len(uploads)} images can be used; at least {MIN_IMAGES} are needed.{reason}")
    except BaseException:
        shutil.rmtree(target)
        raise
    return left_out


def _unpack(uploads, target, report):
    left_out, seen, size = [], {}, 0
    for index, name in enumerate(uploads.names):
        try:
            content = _usable(uploads, index, seen)
        except ValueError as error:
            left_out.append(str(error))
        else:
            size += len(content)
            if size > MAX_BYTES:
                raise ValueError(f"the images take more than {MAX_BYTES >> 30} GB; give fewer or smaller ones.")
            path = target / _folder_of(name) / _file_name(index, name)
            if path.exists():
                path = path.with_stem(f"{path.stem}-{index:05d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if report is not None:
            report(index + 1, len(uploads))
    return left_out


def _usable(uploads, index, seen):
    """The bytes of an image that can be trained on; `seen` says which contents there were, and their names."""
    name = Path(uploads.names[index]).name
    if not is_image_name(name):
        raise ValueError(f"{name} is in no format that is trained on ({', '.join(IMAGE_SUFFIXES)}).")
    uploads.read(index)
    content = uploads.content(index)
    twin = seen.setdefault(hashlib.sha256(content).digest(), name)
    if twin is not name:  # held out and trained on, it would make the promise too good
        raise ValueError(f"{name} is the same image as {twin}.")
    return content


def _keep_good_ones(target):
    """Delete what shows no good parts in a layout that is understood, and say how many images that were.

    Raises:
        ValueError: if folders or names say that not all images show good parts, in no layout that is understood.
    """
    everything = [path for path in target.rglob("*") if path.is_file()]
    if not everything:
        return []
    root = _data_set_in(target)
    good = set(good_files(root, remedy="give the images of good parts alone"))
    others = [path for path in everything if path not in good]
    for path in others:
        path.unlink()
    return [f"{path.relative_to(root).as_posix()} is not among the good images to train on." for path in others]


def _data_set_in(folder):
    """The folder that a ZIP was made of: everything lies in it, and its name says nothing of what its images show."""
    inside = list(folder.iterdir())
    if len(inside) > 1 or not inside[0].is_dir() or says_what_it_shows(inside[0]):
        return folder
    return _data_set_in(inside[0])


def _folder_of(name):
    """Where an image lay in its ZIP, as a path that leads nowhere else; no folder name is taken as it is."""
    parts = [re.sub(r"[^A-Za-z0-9_ -]+", "-", part)[:60].strip(" -") for part in PurePosixPath(name).parts[:-1]]
    return Path(*[part for part in parts if part][:MAX_FOLDERS])


def _file_name(index, name):
    """A name of our own making, which says what the file's own does: a good part, a bad one, another image's mask."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", Path(name).stem).strip("-")[:60]
    return f"{stem or index}{Path(name).suffix.lower()}"
