"""Numbers on an image at its outlined places, set where they hide as little of these as they can."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from rendering.heat_map import OUTLINE_COLOR

INK, PAPER = (255, 255, 255), (20, 20, 20)
"""White on near black in a rim of the outline's colour: it reads on a bright image, a dark one, and the heat map."""

DIGITS_IN_SIDE = 30
"""The longer side of an image is so many times as long as a digit is high."""

SMALLEST_DIGIT = 9
"""In pixels."""

EDGE = 3
"""So many pixels from the edge of its box a place counts as touching it."""

DISTANCES = (0, 0.5, 1, 2)
"""How far from its place a number is tried, in heights of its box."""


def draw_numbers(image, mask, places):
    """Draw 1, 2, … beside places of an image.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3); it is left as it is.
        mask (`np.ndarray`): bool, (height, width): what the numbers are kept off, as far as there is room elsewhere.
        places (`list[tuple[float, float, float, float]]`): left, top, width and height of each, in pixels of the image.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).
    """
    digit = max(SMALLEST_DIGIT, round(max(mask.shape) / DIGITS_IN_SIDE))
    font, margin = ImageFont.load_default(digit), max(2, digit // 5)
    canvas = Image.fromarray(image)
    drawing = ImageDraw.Draw(canvas)
    hidden = binary_dilation(mask, iterations=margin).astype(np.int32)
    for number, place in enumerate(places, 1):
        left, top, right, bottom = drawing.textbbox((0, 0), str(number), font=font)
        width, height = (round(length) + 2 * margin for length in (right - left, bottom - top))
        width = max(width, height)
        x, y = _free_corner(hidden, _extremes(mask, place), width, height, margin)
        hidden[y : y + height, x : x + width] += mask.size  # no number lies on another if it can be helped
        box = (x, y, x + width - 1, y + height - 1)
        drawing.rounded_rectangle(box, radius=margin, fill=PAPER, outline=OUTLINE_COLOR, width=max(1, digit // 14))
        centre = (x + (width - right - left) / 2, y + (height - bottom - top) / 2)
        drawing.text(centre, str(number), font=font, fill=INK)
    return np.asarray(canvas)


def _extremes(mask, place):
    """Where a place begins and ends: its box, clipped, and for each of its edges where on it the place touches it."""
    rows, columns = mask.shape
    left, top, width, height = place
    left, top = (int(min(max(start, 0), length - 1)) for start, length in ((left, columns), (top, rows)))
    right, bottom = (
        min(round(start + length), limit) for start, length, limit in ((left, width, columns), (top, height, rows))
    )
    inside = mask[top:bottom, left:right]
    touched = {
        "right": inside[:, -EDGE:].any(axis=1),
        "left": inside[:, :EDGE].any(axis=1),
        "above": inside[:EDGE].any(axis=0),
        "below": inside[-EDGE:].any(axis=0),
    }
    starts = {"right": top, "left": top, "above": left, "below": left}
    middles = {
        side: starts[side] + (np.median(np.flatnonzero(line)) if line.any() else len(line) / 2)
        for side, line in touched.items()
    }
    return (left, top, right, bottom), middles


def _free_corner(hidden, extremes, width, height, margin):
    """Left and top of a box near a place, inside the image, where least would be hidden; the nearest of those."""
    rows, columns = hidden.shape
    (left, top, right, bottom), middles = extremes
    candidates = []
    for distance in DISTANCES:
        gap = round(margin + distance * height)
        over, under, before, after = top - height - gap, bottom + gap, left - width - gap, right + gap
        candidates += [(after, middles["right"] - height / 2), (before, middles["left"] - height / 2)]
        candidates += [(middles["above"] - width / 2, over), (middles["below"] - width / 2, under)]
        candidates += [(after, over), (before, over), (after, under), (before, under)]
    corners = [
        (round(min(max(x, 0), max(columns - width, 0))), round(min(max(y, 0), max(rows - height, 0))))
        for x, y in candidates
    ]
    return min(corners, key=lambda corner: hidden[corner[1] : corner[1] + height, corner[0] : corner[0] + width].sum())
