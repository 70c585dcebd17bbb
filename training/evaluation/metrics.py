"""Detection and localisation metrics: AUROC, average precision, F1 and PRO, exact over all images at once."""

import numpy as np
from scipy.ndimage import generate_binary_structure, label
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

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
        `dict[str, float]`: pixel_auroc, pixel_ap and pro; NaN where no pixel is defective.
    """
    if not len(masks):
        return {"pixel_auroc": float("nan"), "pixel_ap": float("nan"), "pro": float("nan")}
    truth = np.concatenate([np.asarray(mask, bool).ravel() for mask in masks])
    values = np.concatenate([np.asarray(anomaly_map, np.float32).ravel() for anomaly_map in anomaly_maps])
    if not truth.any() or truth.all():
        return {"pixel_auroc": float("nan"), "pixel_ap": float("nan"), "pro": float("nan")}
    return {
        "pixel_auroc": float(roc_auc_score(truth, values)),
        "pixel_ap": float(average_precision_score(truth, values)),
        "pro": per_region_overlap(masks, anomaly_maps),
    }


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
        ValueError: if no mask has a region, or no pixel is good.
    """
    # Each defective pixel adds 1 / (area of its region * number of regions) to the mean overlap once the threshold
    # falls to its value; each good one adds 1 / (number of good pixels) to the false positive rate.
    gains, values, regions = [], [], 0
    for mask, anomaly_map in zip(masks, anomaly_maps, strict=True):
        components, count = label(np.asarray(mask, bool), structure=EIGHT_CONNECTED)
        areas = np.bincount(components.ravel(), minlength=count + 1).astype(np.float64)
        areas[0] = np.inf
        gains.append((1 / areas)[components].ravel())
        values.append(np.asarray(anomaly_map, np.float32).ravel())
        regions += count
    gains, values = np.concatenate(gains), np.concatenate(values)
    num_good = np.count_nonzero(gains == 0)
    if regions == 0 or num_good == 0:
        raise ValueError("PRO needs at least one defect region and at least one good pixel.")

    order = np.argsort(-values, kind="stable")
    gains, values = gains[order], values[order]
    last_of_value = np.append(values[1:] != values[:-1], True)
    overlap = np.append(0, np.cumsum(gains)[last_of_value] / regions)
    false_positive_rate = np.append(0, np.cumsum(gains == 0)[last_of_value] / num_good)

    end = np.searchsorted(false_positive_rate, max_false_positive_rate, side="right")
    overlap_at_end = np.interp(max_false_positive_rate, false_positive_rate, overlap)
    x = np.append(false_positive_rate[:end], max_false_positive_rate)
    y = np.append(overlap[:end], overlap_at_end)
    return float(np.trapezoid(y, x) / max_false_positive_rate)


def _mean(values):
    return float(np.mean(values)) if len(values) else float("nan")
