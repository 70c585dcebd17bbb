"""Data sets of tiny images in any layout."""

import numpy as np
from PIL import Image

SIZE = (20, 12)

DEFECT = np.pad(np.ones((3, 5), bool), ((3, 6), (4, 11)))


def write(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(SIZE[::-1], 90, np.uint8) if values is None else values
    Image.fromarray(values).save(path)
    return path


def lay_out(root, names):
    """Write a grey image for every name, a black mask for `=empty`, one with a defect for `=mask`."""
    for name in names:
        name, _, kind = name.partition("=")
        values = {"": None, "empty": np.zeros(SIZE[::-1], np.uint8), "mask": DEFECT.astype(np.uint8) * 255}[kind]
        write(root / name, values)
    return root


def times(pattern, count=8):
    return [pattern.format(index) for index in range(count)]
