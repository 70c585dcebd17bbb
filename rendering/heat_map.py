"""Heat maps over images. What a checkpoint draws by itself lies in `pipelines/heat_map.py`, and is offered here too."""

import numpy as np
from PIL import Image

from pipelines.heat_map import (
    MAX_OPACITY,
    OUTLINE_COLOR,
    PLASMA,
    SATURATION_FACTOR,
    colormap,
    legend,
    outline,
    overlay,
    saturation_of,
)

__all__ = [
    "MAX_OPACITY",
    "OUTLINE_COLOR",
    "PLASMA",
    "SATURATION_FACTOR",
    "colormap",
    "legend",
    "outline",
    "overlay",
    "saturation_of",
    "shrink",
]


def shrink(image, anomaly_map, max_side):
    """Scale an image and its map down together until the longer side has at most `max_side` pixels.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3).
        anomaly_map (`np.ndarray`): float32, (height, width).
        max_side (`int`): in pixels; smaller images keep their size.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the image, uint8 RGB, and the map, float32.
    """
    height, width = anomaly_map.shape
    if max(height, width) <= max_side:
        return image, anomaly_map
    factor = max_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    smaller, values = (Image.fromarray(array).resize(size, Image.Resampling.BOX) for array in (image, anomaly_map))
    return np.asarray(smaller), np.asarray(values)
