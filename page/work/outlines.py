"""What a batch keeps of each map, so that another rate needs no network: which pixels exceed which pixel threshold.

A calibration has as many pixel thresholds as it ranks images. The number of those that a pixel exceeds takes a byte and
packs well, where the map itself would take four that do not.
"""

import math

import numpy as np

from rendering.heat_map import outline


class PixelLevels:
    """The pixel thresholds of a calibration, and how maps are counted and outlined by them.

    Args:
        thresholds (`np.ndarray`): float32, ascending, all that there are.
    """

    def __init__(self, thresholds):
        self._thresholds = np.asarray(thresholds, np.float32)
        self._dtype = np.min_scalar_type(len(self._thresholds))

    def of(self, anomaly_map):
        """How many thresholds each pixel exceeds, unsigned integers, (height, width)."""
        return np.searchsorted(self._thresholds, anomaly_map, side="left").astype(self._dtype)

    def areas(self, levels):
        """How many pixels there are from each level on, int64, (thresholds + 1,)."""
        counts = np.bincount(levels.ravel(), minlength=len(self._thresholds) + 1)
        return counts[::-1].cumsum()[::-1]

    def place(self, threshold):
        """The level from which on pixels exceed a threshold; all of them do from 0 on, for minus infinity."""
        return 0 if threshold == -math.inf else int(np.searchsorted(self._thresholds, threshold, side="right"))


def keep_outline(path, levels, heat, drawn):
    """Save the levels, and the pixels of a heat map that an outline was drawn over, to be taken off again."""
    places = np.flatnonzero((heat != drawn).any(axis=-1))
    np.savez_compressed(path, levels=levels, places=places, pixels=heat.reshape(-1, 3)[places])


def draw_outline_anew(path, drawn, place):
    """Draw another outline over a heat map, and its mask.

    Args:
        path (`Path`): what `keep_outline` saved.
        drawn (`np.ndarray`): the heat map with the outline that it had then, uint8 RGB, (height, width, 3).
        place (`int`, *optional*): the level from which on pixels are outlined; without it none are.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the heat map with its outline, and the mask, bool.
    """
    with np.load(path) as kept:
        heat = drawn.copy()
        heat.reshape(-1, 3)[kept["places"]] = kept["pixels"]
        levels = kept["levels"]
    mask = np.zeros(levels.shape, bool) if place is None else levels >= place
    return outline(heat, mask), mask
