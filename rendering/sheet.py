"""Sheets of pictures, one captioned row for each: views of any kind, or input, truth and the parts of the map."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .heat_map import colormap, outline, overlay

MARGIN = 6
TEXT_HEIGHT = 16


def view_sheet(rows, columns, cell=192):
    """Draw views of pictures, a row for each picture.

    Args:
        rows: (caption, views) each: views are `PIL.Image.Image`, one for each column. They keep their shapes.
        columns (`tuple[str]`): names of the columns.
        cell (`int`): height and width that a view is scaled to fit into, in pixels.

    Returns:
        `PIL.Image.Image`: RGB, white where there is no view.
    """
    width = len(columns) * (cell + MARGIN) + MARGIN
    height = TEXT_HEIGHT + len(rows) * (cell + TEXT_HEIGHT + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, name in enumerate(columns):
        draw.text((MARGIN + place * (cell + MARGIN), 1), name, fill="black", font=font)
    for number, (caption, views) in enumerate(rows):
        top = TEXT_HEIGHT + number * (cell + TEXT_HEIGHT + MARGIN)
        draw.text((MARGIN, top + 1), caption, fill="black", font=font)
        for place, view in enumerate(views):
            fitted = ImageOps.contain(view.convert("RGB"), (cell, cell))
            sheet.paste(fitted, (MARGIN + place * (cell + MARGIN), top + TEXT_HEIGHT))
    return sheet


def picture_sheet(rows, columns, saturation, cell=192):
    """Draw a sheet.

    Args:
        rows: (caption, image, mask, maps) each: image uint8 RGB (height, width, 3), mask bool of any size, maps a list
            of float arrays of the image's size, of which the last is laid over the image.
        columns (`tuple[str]`): names of the columns: image, mask, then one for each map.
        saturation (`float`): value at which the colours saturate, the same for all rows.
        cell (`int`): height and width of a picture on the sheet, in pixels.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    drawn = []
    for caption, image, mask, maps in rows:
        pictures = [image, _grey(mask), *(_coloured(part, saturation) for part in maps[:-1])]
        contour = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(image.shape[1::-1]), bool)
        pictures.append(outline(overlay(image, maps[-1], saturation), contour))
        drawn.append((caption, [Image.fromarray(picture).resize((cell, cell)) for picture in pictures]))
    return view_sheet(drawn, columns, cell)


def _grey(mask):
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)


def _coloured(anomaly_map, saturation):
    return np.rint(colormap(np.clip(anomaly_map / saturation, 0, 1))).astype(np.uint8)
