"""A sheet of pictures: input, truth, the parts of the map and the map over the input, one row for each picture."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .heat_map import colormap, outline, overlay

MARGIN = 6
TEXT_HEIGHT = 16


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
    width = len(columns) * (cell + MARGIN) + MARGIN
    height = TEXT_HEIGHT + len(rows) * (cell + TEXT_HEIGHT + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, name in enumerate(columns):
        draw.text((MARGIN + place * (cell + MARGIN), 1), name, fill="black", font=font)
    for number, (caption, image, mask, maps) in enumerate(rows):
        top = TEXT_HEIGHT + number * (cell + TEXT_HEIGHT + MARGIN)
        draw.text((MARGIN, top + 1), caption, fill="black", font=font)
        pictures = [image, _grey(mask), *(_coloured(part, saturation) for part in maps[:-1])]
        contour = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(image.shape[1::-1]), bool)
        pictures.append(outline(overlay(image, maps[-1], saturation), contour))
        for place, picture in enumerate(pictures):
            resized = Image.fromarray(picture).resize((cell, cell))
            sheet.paste(resized, (MARGIN + place * (cell + MARGIN), top + TEXT_HEIGHT))
    return sheet


def _grey(mask):
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)


def _coloured(anomaly_map, saturation):
    return np.rint(colormap(np.clip(anomaly_map / saturation, 0, 1))).astype(np.uint8)
