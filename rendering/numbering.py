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
        x, y = _free_corner(hidden, place, width, height, margin)
        hidden[y : y + height, x : x + width] += mask.size  # no number lies on another if it can be helped
        box = (x, y, x + width - 1, y + height - 1)
        drawing.rounded_rectangle(box, radius=margin, fill=PAPER, outline=OUTLINE_COLOR, width=max(1, digit // 14))
        centre = (x + (width - right - left) / 2, y + (height - bottom - top) / 2)
        drawing.text(centre, str(number), font=font, fill=INK)
    return np.asarray(canvas)


def _free_corner(hidden, place, width, height, margin):
    """Left and top of a box near a place, inside the image, where least would be hidden; the nearest of those."""
    rows, columns = hidden.shape
    left, top, place_width, place_height = place
    candidates = []
    for distance in DISTANCES:
        gap = margin + distance * height
        beside = (left + place_width + gap, left - width - gap)
        over = (top - height - gap, top + place_height + gap)
        middle = (left + (place_width - width) / 2, top + (place_height - height) / 2)
        candidates += [(x, y) for y in (top, middle[1], top + place_height - height) for x in beside]
        candidates += [(x, y) for x in (middle[0], *beside) for y in over]
    corners = [
        (round(min(max(x, 0), max(columns - width, 0))), round(min(max(y, 0), max(rows - height, 0))))
        for x, y in candidates
    ]
    return min(corners, key=lambda corner: hidden[corner[1] : corner[1] + height, corner[0] : corner[0] + width].sum())
