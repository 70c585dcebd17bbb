"""Sheets of images, one captioned row for each: views of any kind, or input, truth and the components of the map.

What the model found is outlined as everywhere else; what somebody labelled has dashes of its own around it, so that a
missed defect never looks like one that was found.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import binary_dilation

from .heat_map import colormap, outline, overlay

MARGIN = 6
TEXT_HEIGHT = 16
LINE = 2
"""Width of outlines, in pixels of the sheet."""

LABEL_COLORS = np.array([(255, 220, 0), (0, 0, 0)], np.uint8)
"""Yellow and black in turn: seen on any colour, and unlike cyan to the colour-blind too."""

DASH = 5
SWATCH = (13, 26)
FOUND_NAME = "cyan line: found by the model"
LABEL_NAME = "yellow and black dashes: "


def view_sheet(rows, columns, cell=192, legend=()):
    """Draw views of images, a row for each image.

    Args:
        rows: (caption, views) each: views are `PIL.Image.Image`, at most one for each column. They keep their shapes.
        columns (`tuple[str]`): names of the columns.
        cell (`int`): height and width that a view is scaled to fit into, in pixels.
        legend: (image, text) each, in a line above everything; see `outline_legend`.

    Returns:
        `PIL.Image.Image`: RGB, white where there is no view.
    """
    rows = [
        (caption, [ImageOps.contain(view.convert("RGB"), (cell, cell)) for view in views]) for caption, views in rows
    ]
    heights = [TEXT_HEIGHT + max(view.height for view in views) + 2 * MARGIN for _, views in rows]
    head = TEXT_HEIGHT + MARGIN if legend else 0
    height = head + TEXT_HEIGHT + MARGIN + sum(heights)
    sheet = Image.new("RGB", (len(columns) * (cell + MARGIN) + MARGIN, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    left = MARGIN
    for swatch, text in legend:
        sheet.paste(swatch, (left, 3))
        left += swatch.width + MARGIN
        draw.text((left, 1), text, fill="black", font=font)
        left += round(draw.textlength(text, font=font)) + 4 * MARGIN
    for place, name in enumerate(columns):
        draw.text((MARGIN + place * (cell + MARGIN), head + 1), name, fill="black", font=font)
    top = head + TEXT_HEIGHT + MARGIN
    for (caption, views), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top + 1), caption, fill="black", font=font)
        for place, view in enumerate(views):
            sheet.paste(view, (MARGIN + place * (cell + MARGIN), top + TEXT_HEIGHT))
        top += height
    return sheet


def map_sheet(rows, columns, saturation, cell=192, labelled="labelled as a defect"):
    """Draw a sheet.

    Args:
        rows: (caption, image, mask, found, maps) each: image uint8 RGB (height, width, 3), mask bool of any size, found
            bool of any size or None where nothing was judged, maps a list of float arrays of the image's size, of which
            the last is laid over the image.
        columns (`tuple[str]`): names of the columns: image, mask, then one for each map.
        saturation (`float`): value at which the colours saturate, the same for all rows.
        cell (`int`): height and width of an image on the sheet, in pixels.
        labelled (`str`): what the masks are.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    drawn = []
    for caption, image, mask, found, maps in rows:
        views = [image, _grey(mask), *(_coloured(values, saturation) for values in maps[:-1])]
        views = [Image.fromarray(view).resize((cell, cell)) for view in views]
        blend = Image.fromarray(overlay(image, maps[-1], saturation)).resize((cell, cell))
        drawn.append((caption, [*views, outlined(blend, found, mask)]))
    judged = any(found is not None for _, _, _, found, _ in rows)
    return view_sheet(drawn, columns, cell, outline_legend(labelled, judged))


def outlined(image, found=None, labelled=None):
    """Outline what was found and what is labelled, however large their masks are.

    Args:
        image (`PIL.Image.Image`): RGB, at the size at which it is shown.
        found, labelled (`np.ndarray`, *optional*): bool, (height, width) of any size.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    pixels = np.asarray(image)
    if labelled is not None:
        pixels = _dashed(pixels, _fitted(labelled, image.size))
    if found is not None:
        pixels = outline(pixels, _fitted(found, image.size), width=LINE)
    return Image.fromarray(pixels)


def outline_legend(labelled="labelled as a defect", judged=True):
    """What the lines of `outlined` mean, for `view_sheet`; without that of what was found where nothing was judged."""
    ground = Image.fromarray(np.full((*SWATCH, 3), 110, np.uint8))
    box = np.zeros(SWATCH, bool)
    box[3:-3, 3:-3] = True
    found = [(outlined(ground, found=box), FOUND_NAME)] if judged else []
    return [*found, (outlined(ground, labelled=box), LABEL_NAME + labelled)]


def _dashed(image, mask):
    """Dashes around the regions of a mask, outside of them but for the image's edge: lines inside stay in sight."""
    border = binary_dilation(mask, np.ones((3, 3)), iterations=LINE) & ~mask
    edge = np.ones_like(mask)
    edge[LINE:-LINE, LINE:-LINE] = False
    y, x = np.nonzero(border | (mask & edge))
    drawn = image.copy()
    drawn[y, x] = LABEL_COLORS[(y // DASH + x // DASH) % 2]
    return drawn


def _fitted(mask, size):
    """A mask at another (width, height); where it becomes smaller, no region is lost."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)) > 0


def _grey(mask):
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)


def _coloured(anomaly_map, saturation):
    return np.rint(colormap(np.clip(anomaly_map / saturation, 0, 1))).astype(np.uint8)
