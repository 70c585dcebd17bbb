"""The pictures that visitors give to be trained on: unpacked into a folder, checked one by one."""

import hashlib
import re
import shutil
from pathlib import Path

from training.pictures.data import IMAGE_SUFFIXES, MIN_IMAGES

MAX_BYTES = 4 << 30
"""So much disk the pictures of one training may take."""


def unpack_pictures(uploads, target, report=None):
    """Write the pictures of an upload to a folder of their own, under names of our own making.

    Args:
        uploads (`Folder`): what the visitor gave.
        target (`Path`): created; taken away again if this fails.
        report (`Callable[[int, int], None]`, *optional*): called with how many of how many were looked at.

    Returns:
        `list[str]`: what was left out, each a sentence with its reason.

    Raises:
        ValueError: if fewer than `training.pictures.data.MIN_IMAGES` can be used, or they take more than `MAX_BYTES`.
    """
    target.mkdir(parents=True)
    try:
        left_out = _unpack(uploads, target, report)
        count = len(uploads) - len(left_out)
        if count < MIN_IMAGES:
            reason = f" The first that cannot be used: {left_out[0]}" if left_out else ""
            raise ValueError(
                f"{count} of {len(uploads)} pictures can be used; at least {MIN_IMAGES} are needed.{reason}"
            )
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
                raise ValueError(f"the pictures take more than {MAX_BYTES >> 30} GB; give fewer or smaller ones.")
            (target / _file_name(index, name)).write_bytes(content)
        if report is not None:
            report(index + 1, len(uploads))
    return left_out


def _usable(uploads, index, seen):
    """The bytes of a picture that can be trained on; `seen` says which contents there were, and their names."""
    name = Path(uploads.names[index]).name
    if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{name} is in no format that is trained on ({', '.join(IMAGE_SUFFIXES)}).")
    uploads.read(index)
    content = uploads.content(index)
    twin = seen.setdefault(hashlib.sha256(content).digest(), name)
    if twin is not name:  # held out and trained on, it would make the promise too good
        raise ValueError(f"{name} is the same picture as {twin}.")
    return content


def _file_name(index, name):
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-")[:60]
    return f"{index:05d}-{stem}{Path(name).suffix.lower()}"
