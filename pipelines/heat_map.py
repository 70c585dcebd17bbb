"""Heat maps over images: colours of a fixed scale, outlines of masks, the scale's legend.

The scale runs from 0, an average good image, which stays transparent, to a saturation that belongs to the
checkpoint: the same value has the same colour in every image.
"""

import numpy as np

PLASMA = np.array(
    [
        (13, 8, 135),
        (70, 3, 159),
        (114, 1, 168),
        (156, 23, 158),
        (189, 55, 134),
        (216, 87, 107),
        (237, 121, 83),
        (251, 159, 58),
        (253, 202, 38),
        (240, 249, 33),
    ],
    dtype=np.float32,
)
"""Ten equidistant colours of the colour map plasma: lightness rises throughout, so that it reads without hue."""

MAX_OPACITY = 0.75
"""Opacity at saturation; the image still shows through."""

OUTLINE_COLOR = (0, 255, 255)
"""Cyan, which plasma does not hold."""

SATURATION_FACTOR = 1.5
"""The colours saturate at this multiple of the pixel threshold at the default false alarm rate."""

LEGEND_GREY = 128
LEGEND_MARK = 2
"""Half the width of the threshold's mark, in pixels."""


def saturation_of(pipe):
    """Where a checkpoint's colours end, in standard deviations of good images, whatever false alarm rate is chosen.

    Raises:
        ValueError: if the pipeline has no calibration.
    """
    if pipe.calibration is None:
        raise ValueError("this checkpoint has no calibration; run training/calibration.py on good images first.")
    return SATURATION_FACTOR * pipe.calibration.pixel_threshold(None, pipe.alpha, pipe.config.timesteps)


def colormap(strength):
    """Colours of a strength in [0, 1] (clipped to it), any shape, as float32 in [0, 255], (*shape, 3)."""
    places = np.linspace(0, 1, len(PLASMA))
    return np.stack([np.interp(strength, places, channel) for channel in PLASMA.T], axis=-1).astype(np.float32)


def overlay(image, anomaly_map, saturation):
    """Lay a heat map over its image; opacity and colour rise linearly from 0 to saturation.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3).
        anomaly_map (`np.ndarray`): float, (height, width), in standard deviations of good images. Values up to 0
            leave the image as it is.
        saturation (`float`): value from which on the colour no longer changes, above 0.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).

    Raises:
        ValueError: if the sizes differ or the saturation is not above 0.
    """
    if image.shape != (*anomaly_map.shape, 3):
        raise ValueError(f"the image's shape is {image.shape}, the map's {anomaly_map.shape}; they must agree.")
    if not saturation > 0:
        raise ValueError(f"saturation is {saturation}; it must be above 0.")
    strength = np.clip(anomaly_map / saturation, 0, 1).astype(np.float32)
    opacity = MAX_OPACITY * strength[..., None]
    return np.rint(image + opacity * (colormap(strength) - image)).astype(np.uint8)


def outline(image, mask, color=OUTLINE_COLOR, width=None):
    """Draw the border of a mask's regions, inside of them, closed where they touch the image's edge.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3); it is left as it is.
        mask (`np.ndarray`): bool, (height, width).
        color (`tuple[int, int, int]`): RGB, 0 to 255.
        width (`int`, *optional*): in pixels; by default 1 for every 400 pixels of the image's longer side.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).
    """
    drawn = image.copy()
    if mask.any():
        width = width or max(1, round(max(mask.shape) / 400))
        drawn[mask & ~_eroded(mask, width)] = color
    return drawn


def _eroded(mask, radius):
    """What of a mask lies more than `radius` pixels from all that is not, such as what lies beyond the edges."""
    for _ in range(2):  # along one axis, then along the other
        inside, window, whole = np.pad(mask, ((radius, radius), (0, 0))), 1, 2 * radius + 1
        while window < whole:  # inside says of `window` pixels from each on whether all are of the mask
            step = min(window, whole - window)
            inside, window = inside[:-step] & inside[step:], window + step
        mask = inside.T
    return mask


def legend(saturation, threshold, height, width):
    """The colour scale over mid-grey, 0 at the left and saturation at the right, the threshold marked by an upright.

    Args:
        saturation (`float`): as in `overlay`.
        threshold (`float`): marked where it lies on the scale, at an end if beyond it.
        height, width (`int`): in pixels.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).
    """
    scale = np.tile(np.linspace(0, saturation, width, dtype=np.float32), (height, 1))
    bar = overlay(np.full((height, width, 3), LEGEND_GREY, np.uint8), scale, saturation)
    place = round(min(max(threshold / saturation, 0), 1) * (width - 1))
    bar[:, max(place - LEGEND_MARK, 0) : place + LEGEND_MARK + 1] = OUTLINE_COLOR
    return bar
