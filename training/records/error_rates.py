"""What a false alarm rate costs: shares of labelled test images that are rejected at any rate, from their p-values.

Kept are the p-values of good images and of every kind of defect, each distinct one with its count. An image is rejected
where its p-value is at most the rate, so that no network has to run again for another rate.
"""

from itertools import pairwise

import numpy as np

from pipelines.score_calibration import SLACK

ALL = "all"
GOOD = "good"
DIGITS = 10
"""p-values are sums of weights, equal up to rounding: they are compared with a slack that is ten times as large."""

COARSE = np.round(np.concatenate([np.arange(1, 200) / 1e4, np.arange(20, 200) / 1e3, np.arange(20, 101) / 1e2]), DIGITS)
"""What p-values are rounded up to where there are more distinct ones than this: as fine as rates are chosen."""


def count_p_values(kinds, p_values):
    """Count the p-values of each kind of image.

    Args:
        kinds (`list[str]`): kind of defect of each image, `GOOD` for none.
        p_values (`np.ndarray`): of each, (n,), above 0 and up to 1.

    Returns:
        `dict[str, list]`: of each kind [p-value, count] pairs, ascending; at most as many as `COARSE`.
    """
    kinds, p_values = np.asarray(kinds), np.round(np.asarray(p_values, float), DIGITS)
    counted = {}
    for kind in sorted(set(kinds.tolist()), key=lambda kind: (kind != GOOD, kind)):
        values = p_values[kinds == kind]
        if len(np.unique(values)) > len(COARSE):
            values = COARSE[np.searchsorted(COARSE, values).clip(max=len(COARSE) - 1)]
        pairs = zip(*np.unique(values, return_counts=True), strict=True)
        counted[kind] = [[float(value), int(count)] for value, count in pairs]
    return counted


def are_p_value_counts(counted, images):
    """Whether something from a file is what `count_p_values` gives for a number of images of each kind, `dict`."""
    return (
        isinstance(counted, dict)
        and counted.keys() == {kind for kind, count in images.items() if count}
        and all(
            _are_pairs(pairs) and sum(count for _, count in pairs) == images[kind] for kind, pairs in counted.items()
        )
    )


def rejected_shares(counted, rate):
    """Share of the images of each kind that a false alarm rate rejects.

    Args:
        counted (`dict[str, list]`): as `count_p_values` gives them.
        rate (`float`): above 0 and up to 1.

    Returns:
        `dict[str, float]`: of `ALL` (every defective image), `GOOD` and each kind of defect; none of what there is no
        image of.
    """
    total = {kind: sum(count for _, count in pairs) for kind, pairs in counted.items()}
    rejected = {kind: sum(count for value, count in pairs if value <= rate + SLACK) for kind, pairs in counted.items()}
    defects = [kind for kind in counted if kind != GOOD]
    shares = {kind: rejected[kind] / total[kind] for kind in counted}
    if defects:
        shares |= {ALL: sum(rejected[kind] for kind in defects) / sum(total[kind] for kind in defects)}
    return shares


def _are_pairs(pairs):
    if not isinstance(pairs, list) or len(pairs) > len(COARSE):
        return False
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return False
    values, counts = [value for value, _ in pairs], [count for _, count in pairs]
    return (
        all(type(value) in (int, float) and 0 < value <= 1 for value in values)
        and all(type(count) is int and count > 0 for count in counts)
        and all(low < high for low, high in pairwise(values))
    )
