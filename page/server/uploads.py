"""Files that users give: taken from the upload folder or a data: URI, and from nowhere else."""

import base64
import binascii
import contextlib
import hashlib
import io
import os
import re
import secrets
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from gradio_client.utils import strip_invalid_filename_characters
from PIL import Image

from page.server.gradio_internals import get_upload_folder, is_http_url_like, is_in_or_equal
from page.server.settings import BASE64_BYTES_PER_MB
from page.server.user_errors import NOT_UPLOADED, URLS_REFUSED
from pipelines.image_preprocessing import to_rgb
from training.data.image_folders import is_ground_truth, is_hidden
from training.data.image_reading import IMAGE_SUFFIXES, is_image_name, read_image

DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
MAX_ZIP_RATIO = 200
"""A member of a ZIP may unpack to so many times its size: images hardly shrink, bombs shrink a thousandfold."""


def uploaded_file(upload):
    """The path of an uploaded file.

    Args:
        upload (`dict`): what Gradio sends for a file: its "path" lies in the upload folder.

    Raises:
        ValueError: if it does not, or names an address.
    """
    named = [upload.get(key) for key in ("path", "url")] if isinstance(upload, dict) else [upload]
    path = named[0] or ""
    with contextlib.suppress(ValueError, OSError):  # such as a null byte in it, or too long
        if is_in_or_equal(str(path), get_upload_folder()) and os.path.isfile(path):
            return Path(path)
    if any(is_http_url_like(str(value)) for value in named if value):
        raise ValueError(URLS_REFUSED)
    raise ValueError(NOT_UPLOADED)


def uploaded_image(upload, max_mb):
    """An uploaded image, upright and in RGB, with its name.

    Args:
        upload (`dict` or `str`): a file as in `uploaded_file`, or a `data:` URI, itself or as its "url".
        max_mb (`int`): the most that a data: URI may hold; Gradio bounds files itself.

    Returns:
        `tuple[np.ndarray, str]`: as `to_rgb` makes it, (height, width, 3), and the file's name.

    Raises:
        ValueError: if it is no image.
    """
    text = upload.get("url") if isinstance(upload, dict) and not upload.get("path") else upload
    if isinstance(text, str) and text[:5].lower() == "data:":
        return to_rgb(_from_data_uri(text, max_mb), "the image"), "the image"
    path = uploaded_file(upload)
    return to_rgb(read_image(path), path.name), path.name


def _from_data_uri(text, max_mb):
    head = DATA_URI.match(text)
    if head is None:
        raise ValueError("that data: URI is no image; data:image/png;base64,… is accepted.")
    if len(text) > max_mb * BASE64_BYTES_PER_MB:
        raise ValueError(f"the image has more than {max_mb} MB; send a smaller one.")
    try:
        content = base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("that data: URI is damaged: its base64 cannot be read.") from None
    return read_image(io.BytesIO(content), "the image")


class Folder:
    """The images of an upload, files and ZIPs, each with the name that the user knows it by.

    Nothing of a ZIP is written to disk: members are read one at a time, when they are asked for.

    Args:
        uploads (`list[dict]`): files as in `uploaded_file`.
        max_images (`int`): more are refused.
        max_mb (`int`): a member of a ZIP that unpacks to more is refused when it is read.
        with_masks (`bool`): without it what lies in a ZIP's folders of ground truth is left out; `num_masks` counts it.

    Raises:
        ValueError: if there are none or too many, or a ZIP cannot be read.
    """

    def __init__(self, uploads, max_images, max_mb, with_masks=True):
        self.max_mb, self.num_masks = max_mb, 0
        self._places = []
        for upload in uploads or []:
            if len(self._places) > max_images:  # a ZIP can name very many, and be named many times
                break
            path = uploaded_file(upload)
            if zipfile.is_zipfile(path):
                members = _image_members(path)
                images = [member for member in members if with_masks or not _is_mask(member)]
                self.num_masks += len(members) - len(images)
                self._places += [(path, member, member.filename) for member in images]
            else:
                self._places.append((path, None, shown_name(upload, path.name)))
        if not self._places:
            raise ValueError("no images were given: choose image files, or a ZIP that holds some.")
        if len(self._places) > max_images:
            raise ValueError(f"there are more than {max_images} images; give at most {max_images} at once.")

    def __len__(self):
        return len(self._places)

    @property
    def names(self):
        """The files' names; of a ZIP's members their paths in it."""
        return [name for _, _, name in self._places]

    def read(self, index):
        """An image, upright and in RGB, (height, width, 3).

        Raises:
            ValueError: if it is none, with its name.
        """
        path, member, name = self._places[index]
        name = Path(name).name
        return to_rgb(read_image(path if member is None else io.BytesIO(self.content(index)), name), name)

    def content(self, index):
        """The bytes of a file, as it was given.

        Raises:
            ValueError: if a ZIP's member cannot be unpacked, is encrypted or unpacks to too much.
        """
        path, member, _ = self._places[index]
        return path.read_bytes() if member is None else _unpacked(path, member, self.max_mb)

    def file(self, index, directory):
        """A path that holds the bytes of a file as it was given; a ZIP's member is written to `directory` for it.

        Raises:
            ValueError: as `content`, or if the upload has been deleted since.
        """
        path, member, name = self._places[index]
        if not path.is_file():
            raise ValueError(f"{Path(name).name} has been deleted from the server by now; upload it again.")
        if member is None:
            return path
        written = Path(directory) / f"{index + 1:04d}-{strip_invalid_filename_characters(Path(name).name)}"
        written.write_bytes(self.content(index))
        return written


def shown_name(upload, name):
    """The name that the user knows a file by, where the browser tells; else `name`."""
    given = upload.get("orig_name") if isinstance(upload, dict) else None
    return Path(str(given)).name[:100] if given else name


def file_stem(name):
    """What the files of an image's results begin with: its name without the suffix, as any file system takes it."""
    return strip_invalid_filename_characters(Path(name).stem, max_bytes=100)


def _image_members(path):
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if is_image_name(member.filename) and not any(map(is_hidden, PurePosixPath(member.filename).parts))
            ]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        raise ValueError(f"{path.name} is damaged and cannot be unpacked.") from None
    if not members:
        raise ValueError(f"{path.name} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return members


def _is_mask(member):
    return any(map(is_ground_truth, PurePosixPath(member.filename).parts[:-1]))


def _unpacked(path, member, max_mb):
    name = Path(member.filename).name
    if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted; pack it without a password.")
    if member.file_size > max_mb << 20 or member.file_size > MAX_ZIP_RATIO * max(member.compress_size, 1000):
        raise ValueError(f"{name} unpacks to {member.file_size >> 20} MB, more than an image that is taken here.")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            return stream.read(member.file_size)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, ValueError, RuntimeError):
        raise ValueError(f"{name} is damaged in the ZIP and cannot be read.") from None


def save_png(array, path):
    """Write uint8 or uint16 pixels, (height, width[, 3]), as a PNG. Returns the path as a string."""
    Image.fromarray(array).save(path, format="PNG", compress_level=1)
    return str(path)


def keep_answer(content, name):
    """Write the bytes of an answer where clients may fetch them, until Gradio's cleaning. Returns the path."""
    folder = Path(get_upload_folder()) / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(16)}-{name}"
    path.write_bytes(content)
    return str(path)


def keep_drawing(pixels, name):
    """Write a drawn image, uint8, as a PNG that a browser shows and saves under `name`, once for each content.

    Returns the path; Gradio's cleaning takes it away.
    """
    content = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16, person=str(pixels.shape).encode()[:16])
    folder = Path(get_upload_folder()) / "drawings" / content.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path, unfinished = folder / name, folder / secrets.token_hex(8)
    try:
        os.utime(path)  # it is as old as its latest use
    except FileNotFoundError:
        save_png(pixels, unfinished)
        unfinished.replace(path)
    return str(path)


def as_png(array):
    """The bytes of uint8 pixels as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
