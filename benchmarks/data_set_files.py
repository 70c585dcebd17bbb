"""What becomes of the files of an official archive: images and masks, decoded, made smaller, written once."""

import io
import re

import numpy as np
from PIL import Image

from rendering.words import one_line
from training.data.image_reading import read_image

MARKED = 127
"""A mask's pixel above it shows a defect; some of the official masks are JPEG files, or smoothed."""


def decode(content, name):
    """Decode an image, (height, width) of any size; errors are those of `read_image`."""
    return read_image(io.BytesIO(content), name)


def square_image(content, name, size):
    """Decode an image of `size`×`size` pixels.

    Raises:
        ValueError: if it cannot be read, or has another size.
    """
    image = decode(content, name)
    if image.size != (size, size):
        raise ValueError(f"its image {one_line(name)} is {image.width}×{image.height} pixels, not {size}×{size}.")
    return image


def marked(image):
    """Which pixels of a mask show a defect: bool, (height, width)."""
    return np.asarray(image.convert("L")) > MARKED


def shrunk_mask(mask, size):
    """A square mask at a smaller size, bool, (size, size): a pixel is marked where any part of it was."""
    return np.asarray(Image.fromarray(255 * mask.astype(np.uint8)).resize((size, size), Image.Resampling.BOX)) > 0


def boxes_mask(content, name, size):
    """The boxes of one image of DeepPCB, lines of "left top right bottom kind", as a mask: bool, (size, size).

    Raises:
        ValueError: if a line has no four numbers.
    """
    mask = np.zeros((size, size), bool)
    for line in content.decode("ascii", errors="replace").splitlines():
        if line.strip():
            try:
                left, top, right, bottom = (max(0, int(number)) for number in re.split(r"[,\s]+", line.strip())[:4])
            except ValueError as error:
                raise ValueError(f"its file {one_line(name)} has a line that is no box.") from error
            mask[top:bottom, left:right] = True
    return mask


def write_new(path, content):
    """Write a file.

    Raises:
        ValueError: if it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "xb") as stream:
            stream.write(content)
    except FileExistsError as error:
        raise ValueError(f"it holds {path.parent.name}/{path.name} twice.") from error


def write_image(path, content, name):
    """Write an image's file as it is, if it can be read; errors are those of `decode` and `write_new`."""
    decode(content, name)
    write_new(path, content)


def save_image(path, image, quality):
    """Encode an image as the suffix says, JPEG without subsampling of colour; errors are those of `write_new`."""
    stream = io.BytesIO()
    if path.suffix == ".png":
        image.save(stream, "PNG", optimize=True)
    else:
        image.save(stream, "JPEG", quality=quality, subsampling=0)
    write_new(path, stream.getvalue())


def save_mask(path, mask):
    """Write a mask, bool, (height, width), as a PNG file of 0 and 255."""
    save_image(path, Image.fromarray(255 * mask.astype(np.uint8)), None)
