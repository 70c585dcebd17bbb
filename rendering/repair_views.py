"""Ways to look at a repair: before beside after, its steps as a strip (paper, Fig. 7) and as an animation."""

import numpy as np
from PIL import Image

GAP = 4
"""White pixels between images that stand side by side."""


def side_by_side(images):
    """Images of one height in a row, white between them.

    Args:
        images (`list[PIL.Image.Image]`): at least one.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image.convert("RGB"), (left, 0))
        left += image.width + GAP
    return sheet


def chosen_steps(steps, count):
    """`count` of the steps at even distances, the first and the last among them; all of them if they are fewer."""
    if len(steps) <= count:
        return list(steps)
    return [steps[index] for index in np.linspace(0, len(steps) - 1, count).round().astype(int)]


def strip(steps, count=8):
    """The steps of a repair side by side, as in Fig. 7 of the paper."""
    return side_by_side(chosen_steps(steps, count))


def save_animation(steps, path, seconds=3.0, pause=1.0):
    """Save the steps as an endless animation, WebP or GIF by the suffix of `path`.

    Args:
        steps (`list[PIL.Image.Image]`): of one size.
        path (`str` or `Path`): where to.
        seconds (`float`): from the first step to the last.
        pause (`float`): seconds that first and last step stay longer.
    """
    frame = max(20, round(1000 * seconds / len(steps)))
    durations = [frame] * len(steps)
    durations[0] += round(1000 * pause)
    durations[-1] += round(1000 * pause)
    steps[0].save(path, save_all=True, append_images=steps[1:], duration=durations, loop=0)
