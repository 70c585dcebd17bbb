"""Masks of labelled defects as data sets have them: any value but the background's is a defect.

Grey with 0 and 255, 0 and 1 or a number for each kind of defect; palettes; colour; drawn into the alpha channel alone;
16 bits. JPEG smears the edges of a mask, so that values far below its largest are background there.
"""

import numpy as np
from PIL import Image, ImageOps

from training.data.image_reading import read_image

LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000")
SMEARED_SHARE = 0.25
"""In a lossy format, or where a mask was resampled, what is at most this share of the largest value is background."""

NOISE = 16
"""A mask in a lossy format whose largest value is below this is empty, but for the format's own noise."""

MAX_LABELS = 32
"""A mask with more values than this has no number for each kind of defect: it was resampled, and its edges are grey."""

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def read_mask_file(path):
    """The defect's pixels of a mask file, bool, (height, width), upright by the mask's own EXIF orientation.

    Raises:
        ValueError: if it cannot be read as an image.
    """
    image = read_image(path)
    is_lossy = image.format in LOSSY_FORMATS
    return _foreground(_mask_values(ImageOps.exif_transpose(image)), is_lossy)


def mask_size(path):
    """Height and width of a mask file, upright. Errors are those of `read_image`."""
    return upright_size(read_image(path))


def upright_size(image):
    """Height and width of an image (`PIL.Image.Image`) after it is turned by its EXIF orientation."""
    width, height = image.size
    return (width, height) if orientation_of(image) in SIDEWAYS else (height, width)


def orientation_of(image):
    """The EXIF orientation of an image, 1 to 8; 1 is upright."""
    value = image.getexif().get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def turned_like(mask, orientation):
    """A mask drawn on the raw pixels of an image, bool, (height, width), turned upright as that image is."""
    image = Image.fromarray(mask)
    image.getexif()[EXIF_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image), bool)


def _mask_values(image):
    """How far each pixel is from the background, (height, width), 0 for the background."""
    if image.mode == "P":
        image = _without_palette(image)
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = np.asarray(image.getchannel("A"))
        colour = np.asarray(image.convert("RGB")).max(axis=-1)
        if alpha.min() == alpha.max():
            return colour
        opaque = colour[alpha > 0]
        return alpha if opaque.min() == opaque.max() or opaque.min() > 0 else np.where(alpha > 0, colour, 0)
    values = np.asarray(image if image.mode in ("1", "L") or image.mode[0] in "IF" else image.convert("RGB"))
    return values.max(axis=-1) if values.ndim == 3 else values


def _without_palette(image):
    """A palette image in colour, or, if black is none of the colours it uses, its numbers: 0 is the background."""
    colours = image.convert("RGBA" if "transparency" in image.info else "RGB")
    is_black = (np.asarray(colours.convert("RGB")) == 0).all(axis=-1)
    return colours if is_black.any() else Image.fromarray(np.asarray(image))


def _foreground(values, is_lossy):
    largest = values.max()
    if is_lossy and largest < NOISE:
        return np.zeros(values.shape, bool)
    if not is_lossy and len(np.unique(values)) <= MAX_LABELS:
        return values != 0
    return values > SMEARED_SHARE * float(largest)
