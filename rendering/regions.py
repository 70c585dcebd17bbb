"""The separate places of a defect mask: where they are, how large, how unusual."""

import numpy as np
from scipy.ndimage import find_objects, label, maximum


def find_regions(mask, anomaly_map, scale=1.0):
    """Connected regions of a mask, corners counted as contact, the largest first.

    Args:
        mask (`np.ndarray`): bool, (height, width).
        anomaly_map (`np.ndarray`): float, (height, width).
        scale (`float`): pixels of the image for one of the mask, along an edge.

    Returns:
        `list[dict]`: x, y (left and top), width, height and area in pixels of the image, int, and peak, the largest
        value of the map.
    """
    labelled, count = label(mask, structure=np.ones((3, 3), int))
    if not count:
        return []
    areas = np.bincount(labelled.ravel())[1:]
    peaks = maximum(anomaly_map, labelled, np.arange(1, count + 1))
    boxes = find_objects(labelled)
    regions = []
    for index in np.argsort(-areas, kind="stable"):
        rows, columns = boxes[index]
        regions.append(
            {
                "x": round(columns.start * scale),
                "y": round(rows.start * scale),
                "width": round((columns.stop - columns.start) * scale),
                "height": round((rows.stop - rows.start) * scale),
                "area": round(float(areas[index]) * scale**2),
                "peak": round(float(peaks[index]), 3),
            }
        )
    return regions
