"""Detection and localisation metrics: AUROC, average precision, F1 and PRO, exact over all images at once.

Good pixels, nearly all there are, only matter by how many of them lie above each defective one. So the pixels of some
images are sorted once (`SortedPixels`), and whatever groups those images belong to look them up.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import generate_binary_structure, label
from sklearn.metrics import f1_score, roc_auc_score

MAX_FALSE_POSITIVE_RATE = 0.3
EIGHT_CONNECTED = generate_binary_structure(2, 2)


def image_metrics(is_defective, anomaly_scores, is_anomalous):
    """Metrics of verdicts on whole images.

    Args:
        is_defective (`np.ndarray`): truth, bool, (n,).
        anomaly_scores (`np.ndarray`): float, (n,).
        is_anomalous (`np.ndarray`): verdict, bool, (n,).

    Returns:
        `dict[str, float]`: image_auroc, image_f1, false_alarm_rate (share of good images rejected) and
        detection_rate (share of defective images rejected); NaN where a class is missing.
    """
    is_defective, is_anomalous = np.asarray(is_defective, bool), np.asarray(is_anomalous, bool)
    both = is_defective.any() and not is_defective.all()
    return {
        "image_auroc": float(roc_auc_score(is_defective, anomaly_scores)) if both else float("nan"),
        "image_f1": float(f1_score(is_defective, is_anomalous, zero_division=0.0)),
        "false_alarm_rate": _mean(is_anomalous[~is_defective]),
        "detection_rate": _mean(is_anomalous[is_defective]),
    }


def pixel_metrics(masks, anomaly_maps):
    """Metrics of maps against masks, over the pixels and regions of all images together.

    Args:
        masks (`list[np.ndarray]`): truth, bool, (height, width); each image may have its own size.
        anomaly_maps (`list[np.ndarray]`): float, the same sizes.

    Returns:
        `dict[str, float]`: pixel_auroc, pixel_ap and pro; NaN where no pixel is defective, or none is good.

    Raises:
        ValueError: if a map holds NaN.
    """
    return metrics_of_sorted([sort_pixels(masks, anomaly_maps)])


def per_region_overlap(masks, anomaly_maps, max_false_positive_rate=MAX_FALSE_POSITIVE_RATE):
    """PRO: overlap of each defect region, averaged over regions, integrated over the false positive rate.

    Exact: every distinct value of the maps is a threshold. Regions are 8-connected components of the masks. The
    integral runs from 0 to `max_false_positive_rate`, linearly interpolated at its end, and is divided by it.

    Args:
        masks (`list[np.ndarray]`): truth, bool, (height, width).
        anomaly_maps (`list[np.ndarray]`): float, the same sizes.

    Returns:
        `float`: in [0, 1].

    Raises:
        ValueError: if no mask has a region, no pixel is good, or a map holds NaN.
    """
    counts = _count([sort_pixels(masks, anomaly_maps)])
    if counts is None:
        raise ValueError("PRO needs at least one defect region and at least one good pixel.")
    return _mean_overlap(counts, max_false_positive_rate)


@dataclass(frozen=True)
class SortedPixels:
    """What the metrics need to know of some images' pixels; several of them can be measured together.

    Args:
        good (`np.ndarray`): map values of good pixels, float32, ascending.
        defective (`np.ndarray`): those of defective pixels, float32, ascending.
        shares (`np.ndarray`): of each defective pixel in its region, 1 / area, float64.
        regions (`int`): number of defect regions.
    """

    good: np.ndarray
    defective: np.ndarray
    shares: np.ndarray
    regions: int


def sort_pixels(masks, anomaly_maps):
    """Sort the pixels of images, `SortedPixels`.

    Args:
        masks (`Iterable[np.ndarray]`): truth, bool, (height, width) each.
        anomaly_maps (`Iterable[np.ndarray]`): float, the same sizes; looked at one after the other.

    Raises:
        ValueError: if a map holds NaN.
    """
    good, defective, shares, regions = [np.empty(0, np.float32)], [np.empty(0, np.float32)], [np.empty(0)], 0
    for mask, anomaly_map in zip(masks, anomaly_maps, strict=True):
        mask, values = np.asarray(mask, bool), np.asarray(anomaly_map, np.float32)
        good.append(values[~mask])
        if mask.any():
            components, count = label(mask, structure=EIGHT_CONNECTED)
            components = components[mask]
            defective.append(values[mask])
            shares.append(1 / np.bincount(components)[components])
            regions += count
    good, defective, shares = np.concatenate(good), np.concatenate(defective), np.concatenate(shares)
    good.sort()
    order = np.argsort(defective)
    defective, shares = defective[order], shares[order]
    if np.isnan(good[-1:]).any() or np.isnan(defective[-1:]).any():  # they sort last
        raise ValueError("an anomaly map holds NaN, so that it cannot be measured.")
    return SortedPixels(good, defective, shares, regions)


def metrics_of_sorted(parts):
    """What `pixel_metrics` gives for all images of `parts`, `list[SortedPixels]`, together."""
    counts = _count(parts)
    if counts is None:
        return {"pixel_auroc": float("nan"), "pixel_ap": float("nan"), "pro": float("nan")}
    share = counts.defective / counts.defective.sum()
    true_positives = counts.defective.cumsum()
    below = counts.num_good - (counts.good_at_least + counts.good_above) / 2  # of equal ones half
    return {
        "pixel_auroc": float((share * below).sum() / counts.num_good),
        "pixel_ap": float((share * (true_positives / (true_positives + counts.good_at_least))).sum()),
        "pro": _mean_overlap(counts, MAX_FALSE_POSITIVE_RATE),
    }


class _Counts(NamedTuple):
    """Of each distinct value of defective pixels, the highest first, (n,) each; and the number of good pixels.

    Between two of those values no curve bends, whatever values good pixels have there: recall and overlap stay.
    """

    defective: np.ndarray  # pixels of this value
    overlap: np.ndarray  # mean share of a region that has at least this value
    good_at_least: np.ndarray
    good_above: np.ndarray
    num_good: int


def _count(parts):
    """`_Counts` of all images of `parts` together; None if no pixel is defective, or none is good."""
    defective, shares = (np.concatenate([getattr(part, name) for part in parts]) for name in ("defective", "shares"))
    num_good = sum(len(part.good) for part in parts)
    if not len(defective) or not num_good:
        return None
    order = np.argsort(defective, kind="stable")
    defective, shares = defective[order], shares[order]
    starts = np.flatnonzero(np.append(True, defective[1:] != defective[:-1]))
    values = defective[starts]
    below, at_most = (
        sum(np.searchsorted(part.good, values, side) for part in parts)[::-1] for side in ("left", "right")
    )
    return _Counts(
        defective=np.diff(np.append(starts, len(defective)))[::-1],
        overlap=np.add.reduceat(shares, starts)[::-1].cumsum() / sum(part.regions for part in parts),
        good_at_least=num_good - below,
        good_above=num_good - at_most,
        num_good=num_good,
    )


def _mean_overlap(counts, max_false_positive_rate):
    """Mean of the overlap's curve from 0 to the given rate: flat from one value to the next, a line across each."""
    rates = np.stack([counts.good_above, counts.good_at_least], axis=1).ravel() / counts.num_good
    x = np.concatenate([[0], rates, [1]])
    y = np.concatenate([[0, 0], np.repeat(counts.overlap, 2)])
    end = np.searchsorted(x, max_false_positive_rate, side="right")
    at_end = np.interp(max_false_positive_rate, x, y)
    x, y = np.append(x[:end], max_false_positive_rate), np.append(y[:end], at_end)
    return float(np.trapezoid(y, x) / max_false_positive_rate)


def _mean(values):
    return float(np.mean(values)) if len(values) else float("nan")
