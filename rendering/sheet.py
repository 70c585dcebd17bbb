"""Sheets of images, one captioned row for each: views of any kind, or input, truth and the components of the map."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .heat_map import colormap, outline, overlay

MARGIN = 6
TEXT_HEIGHT = 16


def view_sheet(rows, columns, cell=192):
    """Draw views of images, a row for each image.

    Args:
        rows: (caption, views) each: views are `PIL.Image.Image`, at most one for each column. They keep their shapes.
        columns (`tuple[str]`): names of the columns.
        cell (`int`): height and width that a view is scaled to fit into, in pixels.

    Returns:
        `PIL.Image.Image`: RGB, white where there is no view.
    """
    rows = [
        (caption, [ImageOps.contain(view.convert("RGB"), (cell, cell)) for view in views]) for caption, views in rows
    ]
    heights = [TEXT_HEIGHT + max(view.height for view in views) + 2 * MARGIN for _, views in rows]
    sheet = Image.new("RGB", (len(columns) * (cell + MARGIN) + MARGIN, TEXT_HEIGHT + MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, name in enumerate(columns):
        draw.text((MARGIN + place * (cell + MARGIN), 1), name, fill="black", font=font)
    top = TEXT_HEIGHT + MARGIN
    for (caption, views), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top + 1), caption, fill="black", font=font)
        for place, view in enumerate(views):
            sheet.paste(view, (MARGIN + place * (cell + MARGIN), top + TEXT_HEIGHT))
        top += height
    return sheet


def map_sheet(rows, columns, saturation, cell=192):
    """Draw a sheet.

    Args:
        rows: (caption, image, mask, maps) each: image uint8 RGB (height, width, 3), mask bool of any size, maps a list
            of float arrays of the image's size, of which the last is laid over the image.
        columns (`tuple[str]`): names of the columns: image, mask, then one for each map.
        saturation (`float`): value at which the colours saturate, the same for all rows.
        cell (`int`): height and width of an image on the sheet, in pixels.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    drawn = []
    for caption, image, mask, maps in rows:
        views = [image, _grey(mask), *(_coloured(values, saturation) for values in maps[:-1])]
        contour = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(image.shape[1::-1]), bool)
        views.append(outline(overlay(image, maps[-1], saturation), contour))
        drawn.append((caption, [Image.fromarray(view).resize((cell, cell)) for view in views]))
    return view_sheet(drawn, columns, cell)


def _grey(mask):
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)


def _coloured(anomaly_map, saturation):
    return np.rint(colormap(np.clip(anomaly_map / saturation, 0, 1))).astype(np.uint8)
