"""Opening image files by their paths: files of this machine only, in the formats of cameras, of a size that fits."""

import os
import re

from PIL import Image, UnidentifiedImageError

from .config_checks import shown

MAX_PIXELS = 64_000_000
"""Largest image accepted, in pixels: beyond it the maps at the image's own size would fill a laptop's memory."""

FILE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")
"""Pillow's names of what is read. Others run programs (EPS) or are no images of a camera."""

SHOWN_PATH = 50
"""Characters of a path that an error shows, counted from its end."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")


def is_path(image):
    """Whether something is a path, `str` or `os.PathLike`, instead of an image."""
    return isinstance(image, str | os.PathLike)


def open_image_file(path, name="image"):
    """Open and decode an image file; of several pages the first.

    Args:
        path (`str` or `os.PathLike`): a file of this machine.
        name (`str`): what errors call it, before its path.

    Returns:
        `PIL.Image.Image`

    Raises:
        ValueError: for an address, or a file that is not there or is no image that can be read.
    """
    path = os.fsdecode(path)
    named = f"{name}, {shown(path if len(path) <= SHOWN_PATH else '…' + path[-SHOWN_PATH:])},"
    if ADDRESS.match(path):
        raise ValueError(f"{named} is an address; nothing is fetched from it: save the file, then pass its path.")
    Image.init()
    try:
        with Image.open(path, formats=[known for known in FILE_FORMATS if known in Image.OPEN]) as image:
            check_size(image.height, image.width, named)
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise ValueError(f"{named} is not an image in a known format.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{named} has too many pixels; crop it or scale it down first.") from error
    except (OSError, SyntaxError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{named} cannot be read: {reason}.") from error


def check_size(height, width, name):
    """Check that an image has pixels, and at most `MAX_PIXELS`.

    Raises:
        ValueError: if it has none, or more.
    """
    if height < 1 or width < 1:
        raise ValueError(f"{name} has no pixels ({width}×{height}).")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"{name} has {width}×{height} pixels; at most {MAX_PIXELS // 1_000_000} million are accepted: "
            "crop it or scale it down first."
        )
