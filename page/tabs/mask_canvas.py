"""The canvas that masks are painted on: an image laid out in its square, and the mask at the image's own size."""

import numpy as np
from PIL import Image

from pipelines.image_preprocessing import as_uint8

MASK_COLOR = (213, 94, 0, 150)
"""Vermilion that the image shows through: seen by the colour-blind too."""

CANVAS = 768
"""Edge of the square that masks are painted on, in pixels. Only an image of that very size has its layer over it."""


def laid_out(image, soft_mask):
    """An image on the canvas with a mask over it.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3).
        soft_mask (`np.ndarray`): float32 in [0, 1], of the same proportions.

    Returns:
        `tuple[dict, np.ndarray]`: what an `ImageEditor` shows, and what of the canvas is marked in it, bool.
    """
    on_canvas = fit(image.shape[:2])
    background = np.full((CANVAS, CANVAS, 3), 255, np.uint8)
    background[on_canvas] = _resized(image, on_canvas)
    mask = np.zeros((CANVAS, CANVAS), bool)
    mask[on_canvas] = _resized(soft_mask, on_canvas, Image.Resampling.NEAREST) > 0
    layer = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    layer[mask] = MASK_COLOR
    return {"background": background, "layers": [layer], "composite": None}, mask


def painted(editing, found, size):
    """The mask at the image's own size; None if it is still the one that was found."""
    marked = np.zeros(found.shape, bool)
    for layer in (editing or {}).get("layers") or []:
        marked |= np.asarray(Image.fromarray(layer).getchannel("A").resize(found.shape[::-1])) > 0
    if (marked == found).all():
        return None
    area = Image.fromarray(marked[fit(size)])
    return np.asarray(area.resize(size[::-1], Image.Resampling.NEAREST))


def fit(size):
    """Where an image of a height and width lies on the canvas, as rows and columns."""
    factor = CANVAS / max(size)
    height, width = (max(1, round(length * factor)) for length in size)
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _resized(array, on_canvas, resampling=Image.Resampling.BICUBIC):
    rows, columns = on_canvas
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(Image.fromarray(array).resize(size, resampling))


def at_size(square, image):
    """The model's square in the proportions of an image, uint8 RGB."""
    return np.asarray(Image.fromarray(as_uint8(square)).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
